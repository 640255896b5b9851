"""The plug-ins in the real tools, on the embedded model and the CPU.

Each test runs where its tool is importable, in an environment of its own
(docs/other-trainers.md names the commands), and is skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hrp
from hrp.demo.base_model import BASE

pytestmark = pytest.mark.slow

FIELDS = {"preheat_rank": 8, "preheat_steps": 2}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


def run(*command: str, folder: Path) -> str:
    """Run a tool to its end, and return all that it has printed."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | ON_CPU, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int = 16) -> list[dict]:
    return [
        {"instruction": f"What is {i} plus {i}?", "input": "", "output": f"It is {2 * i}."}
        for i in range(count)
    ]


def axolotl_settings(folder: Path) -> dict:
    data = write_rows(folder / "rows.jsonl", [{"text": row["output"]} for row in sums()])
    return {
        "base_model": str(BASE),
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": str(data), "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "output_dir": str(folder / "out"),
        "plugins": ["hrp.integrations.axolotl.HRPPlugin"],
        "hrp": FIELDS,
    }


def test_axolotl_preheats_as_its_run_begins(tmp_path):
    pytest.importorskip("axolotl")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(axolotl_settings(tmp_path)))
    printed = run(sys.executable, "-m", "axolotl.cli.train", "run.yaml", folder=tmp_path)
    assert "Preheating" in printed
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_axolotl_refuses_a_key_that_is_mistyped(tmp_path):
    pytest.importorskip("axolotl")
    settings = axolotl_settings(tmp_path) | {"hrp": {"preheat_ranks": 8}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(AssertionError, match="did you mean `preheat_rank`"):
        run(sys.executable, "-m", "axolotl.cli.train", "run.yaml", folder=tmp_path)


def test_ms_swift_preheats_as_its_run_begins(tmp_path):
    pytest.importorskip("swift")
    plugin = tmp_path / "hrp_plugin.py"
    plugin.write_text(f"from hrp.integrations.ms_swift import register\nregister(**{FIELDS!r})\n")
    turns = [
        {"messages": [{"role": "user", "content": row["instruction"]},
                      {"role": "assistant", "content": row["output"]}]}
        for row in sums()
    ]  # fmt: skip
    data = write_rows(tmp_path / "rows.jsonl", turns)
    printed = run(
        "swift", "sft", "--model", str(BASE), "--model_type", "llama3_2", "--template", "dummy",
        "--tuner_type", "lora", "--lora_rank", "4", "--target_modules", "q_proj", "v_proj",
        "--dataset", str(data), "--max_steps", "4", "--per_device_train_batch_size", "2",
        "--torch_dtype", "float32", "--external_plugins", str(plugin), "--callbacks", "hrp",
        "--output_dir", str(tmp_path / "out"), folder=tmp_path,
    )  # fmt: skip
    assert "Preheating" in printed
    assert list((tmp_path / "out").rglob("adapter_config.json"))


def llama_factory_settings(folder: Path, **settings: object) -> dict:
    return {
        "model_name_or_path": str(BASE),
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "q_proj,v_proj",
        "template": "default",
        "dataset_dir": str(folder),
        "cutoff_len": 64,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "output_dir": str(folder / "out"),
        **settings,
    }


def test_llama_factory_preheats_as_its_run_begins(tmp_path, capsys):
    tuner = pytest.importorskip("llamafactory.train.tuner")
    write_rows(tmp_path / "rows.jsonl", sums())
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "rows.jsonl"}}))
    settings = llama_factory_settings(tmp_path, stage="sft", dataset="sums")
    tuner.run_exp(settings, callbacks=[hrp.HRPCallback(hrp.HRPConfig(**FIELDS))])
    assert "Preheating" in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_llama_factory_s_dpo_is_refused_without_the_trainer(tmp_path):
    tuner = pytest.importorskip("llamafactory.train.tuner")
    rows = [
        {"instruction": r["instruction"], "chosen": r["output"], "rejected": "No."} for r in sums()
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "rows.jsonl", "ranking": True, "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    settings = llama_factory_settings(tmp_path, stage="dpo", dataset="pairs")
    with pytest.raises(ValueError, match="pass the trainer"):
        tuner.run_exp(settings, callbacks=[hrp.HRPCallback(hrp.HRPConfig(**FIELDS))])
