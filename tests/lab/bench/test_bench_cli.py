from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from helpers.tiny_bench import FEW
from hrp_lab.bench.record_store import load_records
from hrp_lab.cli.bench_commands import main


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A folder with an experiment that was run, three seeds of it."""
    folder = tmp_path_factory.mktemp("cli")
    experiment = FEW | {"seeds": [0, 1, 2], "arms": ["lora", "hrp-a", "oracle-b"],
                        "oracle": {"steps": 1}}  # fmt: skip
    (folder / "few.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["run", str(folder / "few.yaml")]) == 0
    return folder


def test_run_puts_records_and_what_is_shared_beside_the_config(ran):
    records = load_records(ran / "results" / "few")
    assert len(records) == 9
    assert {record.status for record in records} == {"ok"}
    assert len(list((ran / ".shared").iterdir())) == 6
    assert all("hrp-lab bench run" in record.command for record in records)
    assert all(record.started <= record.ended and record.versions["peft"] for record in records)


def test_a_rerun_finds_nothing_to_do(ran, capsys):
    assert main(["run", str(ran / "few.yaml")]) == 0
    assert "0 runs (nothing to do)" in capsys.readouterr().out


def test_a_record_tells_what_was_run(ran):
    found = [json.loads(path.read_text()) for path in (ran / "results" / "few").glob("*.json")]
    hrp = next(one for one in found if one["run"]["arm"] == "hrp-a")
    assert hrp["run"]["config"]["hrp"]["preheat_steps"] == 1
    assert hrp["run"]["config"]["metric"] == "eval_loss"
    assert (hrp["costs"]["preheat_steps"], hrp["costs"]["finetune_steps"]) == (1, 2)
    assert len(hrp["preheat_losses"]) == 1
    assert hrp["costs"]["tokens"] > 0 < hrp["costs"]["flops"]


def test_list_counts_what_is_missing(ran, capsys):
    assert main(["list", str(ran / "few.yaml")]) == 0
    assert "9 runs: 9 ok" in capsys.readouterr().out
    assert main(["list", str(ran / "few.yaml"), "--records", str(ran / "none")]) == 0
    assert "9 runs: 9 missing" in capsys.readouterr().out


def test_list_tells_an_arm_s_configurations_apart(tmp_path, capsys):
    settings = FEW | {"arms": [{"name": "hrp-ab", "hrp": {"preheat_steps": [1, 0.5]}}]}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(settings))
    assert main(["list", str(tmp_path / "few.yaml")]) == 0
    said = capsys.readouterr().out
    assert "hrp-ab K=1  equal_total" in said
    assert "hrp-ab K=0.5  equal_total" in said


def test_list_names_arms_and_tasks(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in ("hrp-ab", "oracle-b", "glue-cola", "wordproblems"):
        assert name in said


def test_export_writes_a_result_of_peft_s_format_for_every_run(ran, tmp_path, capsys):
    out = tmp_path / "peft"
    assert main(["export", str(ran / "results" / "few"), "--out", str(out)]) == 0
    assert f"wrote 9 results to {out} (0 runs not applicable, left out)" in capsys.readouterr().out
    found = [json.loads(path.read_text()) for path in out.iterdir()]
    assert len(found) == 9
    assert {"run_info", "train_info", "meta_info"} == set.union(*map(set, found))
    assert {one["run_info"]["train_config"]["arm"] for one in found} == {
        "lora",
        "hrp-a",
        "oracle-b",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "none", "--out", "x"], "'none' is no folder"),
        (["run", "none.yaml"], "none.yaml"),
        (["run", "few.yaml", "--workers", "0"], "`--workers` must be an integer >= 1, got 0"),
        (
            ["run", "few.yaml", "--time_limit", "-1"],
            "`--time_limit` must be finite and > 0, got -1",
        ),
        (["pack", "none"], "'none' is no folder"),
        (["list", "few.yaml", "--records", "broken"], "broken.jsonl', line 1: not JSON"),
    ],
)
def test_a_user_s_error_is_told_in_a_line(ran, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ran)
    Path("broken.jsonl").write_text('{"schema": "hrp-rec\n')
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hrp-lab bench {arguments[0]}: ")
    assert message in said
    assert "Traceback" not in said


def test_packed_records_are_listed_exported_and_not_run_again(ran, tmp_path, capsys):
    folder = tmp_path / "results" / "few"
    shutil.copytree(ran / "results" / "few", folder)
    shutil.copy(ran / "few.yaml", tmp_path)
    before = [record.to_line() for record in load_records(folder)]
    assert main(["pack", str(tmp_path / "few.yaml")]) == 0
    assert f"packed 9 records into {folder}.jsonl" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    assert Path(f"{folder}.jsonl").read_text() == "".join(before)
    assert main(["run", str(tmp_path / "few.yaml")]) == 0
    assert "0 runs (nothing to do)" in capsys.readouterr().out
    for records in (folder, f"{folder}.jsonl"):
        assert main(["list", str(tmp_path / "few.yaml"), "--records", str(records)]) == 0
        assert "9 runs: 9 ok" in capsys.readouterr().out
        assert main(["export", str(records), "--out", str(tmp_path / "peft")]) == 0
        assert "wrote 9 results" in capsys.readouterr().out
    assert main(["pack", f"{folder}.jsonl"]) == 0
    assert "packed 0 records" in capsys.readouterr().out


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "hrp-lab bench run experiments/" in said
    assert "hrp-lab bench export experiments/" in said


def test_a_copied_tree_may_name_its_commit(monkeypatch):
    from hrp_lab.cli import bench_commands

    monkeypatch.setattr("hrp_lab.bench.record.git_state", lambda folder: ("fff", True))
    monkeypatch.delenv("HRP_GIT_COMMIT", raising=False)
    assert bench_commands._git() == ("fff", True)
    monkeypatch.setenv("HRP_GIT_COMMIT", "abc123")
    assert bench_commands._git() == ("abc123", None)
