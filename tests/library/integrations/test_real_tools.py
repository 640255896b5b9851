"""The plug-ins and the folder of `hrp init` in the real tools, on the embedded model and the CPU.

Each test runs where its tool is installed, in an environment of its own (`make test-tools`), and
is skipped elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import hrp
from helpers.commands import call
from helpers.recorded_run import LOSSES, SPECTRUM, START
from hrp.demo import BASE, load_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 42  # of the tools' runs: preheating sees their first batch with the same one
PREHEATING = {"preheat_rank": 8, "preheat_steps": 2, "seed": SEED}
RANK, ALPHA, TARGETS = 4, 8, ["q_proj", "v_proj"]
BATCH, ACCUMULATION, STEPS, RATE = 2, 2, 3, 1e-3
TESTS = Path(__file__).parents[2]
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
}


def run(*command: str | Path, folder: Path) -> str:
    """Run a tool to its end in ``folder``, whose modules it can import; return what it printed."""
    paths = [str(folder), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(paths)}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int = 16) -> list[dict]:
    return [
        {"instruction": f"What is {i} plus {i}?", "input": "", "output": f"It is {2 * i}."}
        for i in range(count)
    ]


def axolotl_settings(folder: Path, **settings: object) -> dict:
    data = write_rows(folder / "rows.jsonl", sums())
    return {
        "base_model": str(BASE),
        "adapter": "lora",
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_target_modules": TARGETS,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "datasets": [{"path": str(data), "ds_type": "json", "type": "alpaca"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 128,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": RATE,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "seed": SEED,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "output_dir": str(folder / "out"),
        "plugins": ["recorded.RecorderPlugin"],
        **settings,
    }


def train_axolotl(folder: Path, settings: dict) -> str:
    (folder / "recorded.py").write_text(
        "from axolotl.integrations.base import BasePlugin\n"
        "from helpers.recorded_run import Recorder\n"
        "class RecorderPlugin(BasePlugin):\n"
        "    def post_trainer_create(self, cfg, trainer):\n"
        f"        trainer.add_callback(Recorder({str(folder)!r}))\n"
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return run(sys.executable, "-m", "axolotl.cli.train", "run.yaml", folder=folder)


def axolotl(folder: Path, start: Path | None = None, preheats: bool = False) -> str:
    settings = axolotl_settings(folder)
    if start:
        settings["lora_model_dir"] = str(start)
    if preheats:
        settings["plugins"].append("hrp.integrations.axolotl.HRPPlugin")
        settings["hrp"] = PREHEATING
    return train_axolotl(folder, settings)


def swift(
    folder: Path,
    start: Path | None = None,
    preheats: bool = False,
    rows: list[dict] | None = None,
    more: tuple[object, ...] = (),
) -> str:
    (folder / "hrp_plugin.py").write_text(
        "from helpers.recorded_run import Recorder\n"
        "from hrp.integrations.ms_swift import register\n"
        "from swift.callbacks import callbacks_map\n"
        f"register(**{PREHEATING!r})\n"
        f"callbacks_map['recorder'] = lambda args, trainer: Recorder({str(folder)!r})\n"
    )
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in sums()
    ]
    data = write_rows(folder / "rows.jsonl", rows or turns)
    lora = ["--lora_rank", RANK, "--lora_alpha", ALPHA, "--lora_dropout", "0"]
    return run(
        Path(sys.executable).with_name("swift"), "sft", "--model", BASE, "--model_type", "llama",
        "--template", "dummy", "--tuner_type", "lora", *lora, "--target_modules", *TARGETS,
        "--dataset", data, "--max_steps", STEPS, "--per_device_train_batch_size", BATCH,
        "--gradient_accumulation_steps", ACCUMULATION, "--logging_steps", "1",
        "--learning_rate", RATE, "--lr_scheduler_type", "constant", "--seed", SEED,
        "--torch_dtype", "float32", "--external_plugins", "hrp_plugin.py",
        "--callbacks", *(["hrp"] if preheats else []), "recorder",
        *(["--adapters", start] if start else []),
        "--check_model", "false", "--output_dir", folder / "out", *more, folder=folder,
    )  # fmt: skip


HF_TRAINING = {
    "max_steps": STEPS,
    "logging_steps": 1,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATION,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "seed": SEED,
    "report_to": "none",
    "use_cpu": True,
}
"""HF's arguments, which LLaMA-Factory and unsloth take as they are."""


def llamafactory_settings(folder: Path, **settings: object) -> dict:
    write_rows(folder / "rows.jsonl", sums())
    pairs = [
        {"instruction": r["instruction"], "chosen": r["output"], "rejected": "No."} for r in sums()
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    judged = [row | {"kto_tag": bool(i % 2)} for i, row in enumerate(sums())]
    write_rows(folder / "judged.jsonl", judged)
    chosen = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    judgement = {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}
    info = {
        "sums": {"file_name": "rows.jsonl"},
        "pairs": {"file_name": "pairs.jsonl", "ranking": True, "columns": chosen},
        "judged": {"file_name": "judged.jsonl", "columns": judgement},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return {
        "model_name_or_path": str(BASE),
        "do_train": True,
        "stage": "sft",
        "dataset": "sums",
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": ",".join(TARGETS),
        "template": "default",
        "dataset_dir": str(folder),
        "cutoff_len": 128,
        **HF_TRAINING,
        "output_dir": str(folder / "out"),
        **settings,
    }


def train_llamafactory(folder: Path, settings: dict, preheats: bool) -> str:
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "train.py").write_text(
        "import json\n"
        "import hrp\n"
        "from helpers.recorded_run import Recorder\n"
        "from llamafactory.train.tuner import run_exp\n"
        f"callbacks = [Recorder({str(folder)!r})]\n"
        f"if {preheats}:\n"
        f"    callbacks.append(hrp.HRPCallback(hrp.HRPConfig(**{PREHEATING!r})))\n"
        "run_exp(json.load(open('settings.json')), callbacks=callbacks)\n"
    )
    return run(sys.executable, "train.py", folder=folder)


def llamafactory(folder: Path, start: Path | None = None, preheats: bool = False) -> str:
    settings = llamafactory_settings(folder)
    if start:
        settings |= {"adapter_name_or_path": str(start), "create_new_adapter": False}
    return train_llamafactory(folder, settings, preheats)


def unsloth(folder: Path, start: Path | None = None, preheats: bool = False) -> str:
    data = write_rows(
        folder / "rows.jsonl",
        [{"text": f"{row['instruction']} {row['output']}<eos>"} for row in sums()],
    )
    loading = {"max_seq_length": 128, "load_in_4bit": False}
    lora = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "lora_dropout": 0}
    args = {
        "output_dir": str(folder / "out"),
        **HF_TRAINING,
        "bf16": False,
    }
    (folder / "train.py").write_text(
        "from unsloth import FastLanguageModel\n"
        "import torch\n"
        "from datasets import load_dataset\n"
        "from trl import SFTConfig, SFTTrainer\n"
        "import hrp\n"
        "from helpers.recorded_run import Recorder\n"
        "model, tokenizer = FastLanguageModel.from_pretrained(\n"
        f"    {str(start or BASE)!r}, dtype=torch.float32, **{loading!r})\n"
        f"if not {bool(start)}:\n"
        f"    model = FastLanguageModel.get_peft_model(model, **{lora!r})\n"
        f"rows = load_dataset('json', data_files={str(data)!r}, split='train')\n"
        f"trainer = SFTTrainer(model, SFTConfig(**{args!r}), train_dataset=rows,\n"
        f"    processing_class=tokenizer, callbacks=[Recorder({str(folder)!r})])\n"
        f"if {preheats}:\n"
        f"    hrp.apply_hrp(trainer, hrp.HRPConfig(**{PREHEATING!r}))\n"
        "trainer.train()\n"
    )
    return run(sys.executable, "train.py", folder=folder)


@pytest.fixture(params=[axolotl, llamafactory, swift, unsloth], ids=lambda train: train.__name__)
def train(request):
    """How to train with the tool of this environment."""
    skip_without(request.param.__name__)
    return request.param


def skip_without(tool: str) -> None:
    """A tool that is installed and does not import fails its tests."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")


def with_adapter() -> PeftModel:
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(load_base()[0], config)


def factors(model: PeftModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def assert_started(folder: Path, expected: PeftModel) -> None:
    """The run recorded in ``folder`` began with the factors of ``expected``, as PEFT has them."""
    started = load_file(folder / START)
    assert any(tensor.any() for name, tensor in started.items() if "lora_B" in name)
    torch.testing.assert_close(started, dict(factors(expected)), rtol=0, atol=5e-6)


def assert_trained(folder: Path) -> None:
    """What the run has saved is no longer what it began with."""
    (saved,) = (folder / "out").glob("**/checkpoint-*/adapter_model.safetensors")
    before, after = load_file(folder / START), load_file(saved)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def losses(folder: Path) -> list[float]:
    return json.loads((folder / LOSSES).read_text(encoding="utf-8"))


@pytest.fixture
def start(tmp_path) -> Path:
    """A folder of `hrp init`, on the embedded model."""
    ids = torch.randint(2, 700, (8, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=3)
    hrp.preheat(with_adapter(), config, dataloader=DataLoader(rows, 4)).save(tmp_path / "spectrum")
    lora = ["--lora_r", RANK, "--lora_alpha", ALPHA, "--lora_dropout", 0]
    folders = ["--spectrum", tmp_path / "spectrum", "--output_dir", tmp_path / "start"]
    assert call("init", *map(str, lora + folders), "--model_name_or_path", BASE) == 0
    return tmp_path / "start"


def test_from_a_folder_the_run_starts_as_plain_peft_does(train, start, tmp_path):
    train(tmp_path, start=start)
    loaded = PeftModel.from_pretrained(load_base()[0], start, is_trainable=True)
    assert_started(tmp_path, loaded)
    assert_trained(tmp_path)


def test_from_within_preheating_has_the_run_s_own_loss_and_starts_it(train, tmp_path):
    plain, preheated = tmp_path / "plain", tmp_path / "preheated"
    for folder in (plain, preheated):
        folder.mkdir()
    train(plain)
    train(preheated, preheats=True)
    spectrum = hrp.Spectrum.load(preheated / SPECTRUM)
    assert spectrum.provenance["losses"][0] == pytest.approx(losses(plain)[0], abs=2e-4)
    assert len(losses(preheated)) == STEPS
    expected = with_adapter()
    hrp.initialize_lora_hrp_weights(expected, spectrum)
    assert_started(preheated, expected)
    assert_trained(preheated)


def test_axolotl_refuses_a_key_that_is_mistyped(tmp_path):
    skip_without("axolotl")
    plugins = ["recorded.RecorderPlugin", "hrp.integrations.axolotl.HRPPlugin"]
    settings = axolotl_settings(tmp_path, plugins=plugins, hrp={"preheat_ranks": 8})
    with pytest.raises(AssertionError, match="did you mean `preheat_rank`"):
        train_axolotl(tmp_path, settings)


def test_ms_swift_s_classifiers_train_on_after_preheating(tmp_path):
    """Its `train` patches the class of a classifier, which must not happen twice."""
    skip_without("swift")
    rows = [
        {"messages": [{"role": "user", "content": row["instruction"]}], "label": number % 2}
        for number, row in enumerate(sums())
    ]
    swift(tmp_path, preheats=True, rows=rows, more=("--task_type", "seq_cls", "--num_labels", 2))
    assert len(losses(tmp_path)) == STEPS
    assert_trained(tmp_path)


@pytest.mark.parametrize(("stage", "data"), [("dpo", "pairs"), ("rm", "pairs"), ("kto", "judged")])
def test_llama_factory_s_other_losses_are_refused(tmp_path, stage, data):
    skip_without("llamafactory")
    settings = llamafactory_settings(tmp_path, stage=stage, dataset=data)
    with pytest.raises(AssertionError, match="pass the trainer"):
        train_llamafactory(tmp_path, settings, preheats=True)
