"""TRL's flags do in `hrp sft` what they do in `trl sft`, in preheating too (docs/trl-flags.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from peft import PeftModel

import hrp
from helpers.commands import BASE, LORA, QUICK, call, questions, training
from hrp.demo import load_base

DOCS = Path(__file__).parents[3] / "docs" / "trl-flags.md"
# What each flag must change for the run to have noticed it: the losses of preheating.
CHANGING = {
    "packing": ["--packing", "true", "--max_length", "64"],
    "packing_strategy": [
        *("--packing", "true", "--packing_strategy", "wrapped", "--max_length", "64"),
    ],
    "completion_only_loss": ["--completion_only_loss", "false"],
    "bf16": ["--bf16", "true"],
    "dtype": ["--dtype", "bfloat16"],
    "gradient_accumulation_steps": ["--gradient_accumulation_steps", "2"],
    "per_device_train_batch_size": ["--per_device_train_batch_size", "2"],
    "max_length": ["--max_length", "24"],
    "shuffle_dataset": ["--shuffle_dataset", "true"],
    "loss_type": ["--loss_type", "dft"],
    "neftune_noise_alpha": ["--neftune_noise_alpha", "50"],
    "optim": ["--optim", "adafactor"],
    "weight_decay": ["--weight_decay", "20"],
    "max_grad_norm": ["--max_grad_norm", "0.001", "--optim", "sgd"],
    "seed": ["--seed", "7"],
    "eos_token": ["--eos_token", "?"],
    "use_rslora": ["--use_rslora"],
    "use_dora": ["--use_dora"],
    "lora_alpha": ["--lora_alpha", "64"],
    "lora_dropout": ["--lora_dropout", "0.5"],
    "lora_target_modules": ["--lora_target_modules", "q_proj", "v_proj"],
    "lora_modules_to_save": ["--lora_modules_to_save", "lm_head"],
}
# These must not change preheating's losses beyond rounding.
NEUTRAL = {
    "gradient_checkpointing": ["--gradient_checkpointing", "true"],
    "attn_implementation": ["--attn_implementation", "eager"],
    "lr_scheduler_type": ["--lr_scheduler_type", "cosine", "--warmup_steps", "2"],
    "save_total_limit": ["--save_total_limit", "1"],
    "eval_strategy": [
        *("--eval_strategy", "steps", "--eval_steps", "2", "--dataset_test_split", "train"),
        *("--load_best_model_at_end", "true"),
    ],
    "num_train_epochs": ["--max_steps", "-1", "--num_train_epochs", "0.2"],
}
IN_EVERY_RUN = ("packing", "gradient_checkpointing")


def cases(flags: dict[str, list[str]]) -> list:
    marks = {name: [] if name in IN_EVERY_RUN else [pytest.mark.slow] for name in flags}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in flags.items()]


def preheating_losses(output) -> list[float]:
    base, _ = load_base()
    PeftModel.from_pretrained(base, output)
    return hrp.Spectrum.load(output / "spectrum").provenance["losses"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return questions(tmp_path_factory.mktemp("flags"))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> list[float]:
    output = tmp_path_factory.mktemp("plain") / "adapter"
    assert call("sft", *training(data, output)) == 0
    return preheating_losses(output)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # lm_head is tied
@pytest.mark.parametrize("flags", cases(CHANGING))
def test_a_flag_of_the_loss_acts_in_preheating_too(data, plain, tmp_path, flags):
    assert call("sft", *training(data, tmp_path / "adapter", *flags)) == 0
    losses = preheating_losses(tmp_path / "adapter")
    assert len(losses) == len(plain)
    assert losses != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("flags", cases(NEUTRAL))
def test_a_flag_of_the_schedule_or_the_machine_leaves_preheating_alone(
    data, plain, tmp_path, flags
):
    assert call("sft", *training(data, tmp_path / "adapter", *flags)) == 0
    assert preheating_losses(tmp_path / "adapter") == pytest.approx(plain, rel=1e-4)


def fine_tuned(path, tmp_path, *flags) -> None:
    settings = ["--model_name_or_path", BASE, *LORA, *QUICK, *flags]
    named = [] if path is None else ["--dataset_path", path]
    assert call("sft", *settings, *named, "--output_dir", tmp_path / "adapter") == 0
    assert len(preheating_losses(tmp_path / "adapter")) == 5


def written(tmp_path, rows: list[dict]) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("column", ["text", "story"])
def test_plain_text(tmp_path, column):
    path = written(tmp_path, [{column: f"{i} plus 1 is {i + 1}."} for i in range(16)])
    fine_tuned(path, tmp_path, "--dataset_text_field", column)


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--assistant_only_loss", "true"]])
def test_conversations(tmp_path, flags):
    turns = [
        [{"role": "user", "content": f"{i} plus 1?"}, {"role": "assistant", "content": f"{i + 1}."}]
        for i in range(16)
    ]
    path = written(tmp_path, [{"messages": messages} for messages in turns])
    (tmp_path / "chat.jinja").write_text(CHAT)
    fine_tuned(path, tmp_path, "--chat_template_path", tmp_path / "chat.jinja", *flags)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # bitsandbytes on a CPU has many
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base(data, plain, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    assert call("sft", *training(data, tmp_path / "adapter", f"--load_in_{bits}")) == 0
    assert preheating_losses(tmp_path / "adapter") == pytest.approx(plain, rel=0.2)


@pytest.mark.slow
def test_a_streamed_data_set(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    written(rows, [{"text": f"{i} plus 1 is {i + 1}."} for i in range(40)])
    fine_tuned(None, tmp_path, "--dataset_name", rows, "--dataset_streaming", "true")


@pytest.mark.slow
def test_a_mixture_of_data_sets(tmp_path):
    path = written(tmp_path, [{"text": f"{i} plus 1 is {i + 1}."} for i in range(40)])
    one = {"path": "json", "data_files": str(path)}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": [one, one]}))
    fine_tuned(None, tmp_path, "--config", tmp_path / "mixture.yaml")


def test_the_documented_table_names_every_flag_tested_here():
    text = DOCS.read_text(encoding="utf-8")
    tested = [line for line in text.splitlines() if line.startswith("|") and "| tested" in line]
    for name in (*CHANGING, *NEUTRAL):
        assert any(f"`--{name}`" in line for line in tested), name
