from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hrp_lab.demo_base.pretrain import PretrainConfig, main, pretrain

TINY = PretrainConfig(steps=4, batch_size=2, length=32, tokenizer_documents=200, log_every=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrain") / "base"
    pretrain(out, TINY, command="test")
    return out


def losses(folder: Path) -> tuple[float, float]:
    provenance = json.loads((folder / "provenance.json").read_text())
    return provenance["final_loss"], provenance["held_out_loss"]


def test_what_it_writes_loads_by_the_auto_classes(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_the_provenance_names_command_seed_and_steps(made: Path) -> None:
    provenance = json.loads((made / "provenance.json").read_text())
    assert provenance["command"] == "test"
    assert provenance["config"]["seed"] == 0
    assert provenance["config"]["steps"] == 4


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(
    made: Path, tmp_path: Path
) -> None:
    pretrain(tmp_path / "again", TINY, command="test")
    pretrain(tmp_path / "other", replace(TINY, seed=1), command="test")
    assert losses(tmp_path / "again") == losses(made)
    assert losses(tmp_path / "other") != losses(made)


def test_an_existing_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--steps", "1"]) == 2
    assert "exists; choose another" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
