"""`hrp finetune`: encoder-decoders and classifiers, on HF's trainers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import hrp
from helpers.commands import QUICK, call
from hrp.demo import load_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with a tiny T5 and a tiny BERT, and the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    _, tokenizer = load_base()
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    t5 = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, **size)
    t5.decoder_start_token_id = tokenizer.pad_token_id
    bert = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, **size
    )
    T5ForConditionalGeneration(t5).save_pretrained(folder / "t5")
    BertForSequenceClassification(bert).save_pretrained(folder / "bert")
    for name in ("t5", "bert"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"sentence": f"{i} plus 1 is good", "mood": ["bad", "good"][i % 2]} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(task, base, data, output, *more):
    lora = ("--lora_r", "2", "--lora_alpha", "4")
    return (
        *("--task", task, "--model_name_or_path", base, "--dataset_path", data),
        *("--output_dir", output, *lora, *QUICK, *more),
    )


SEQ2SEQ = ("--prompt_template", "say: {sentence}", "--completion_template", "{mood}")
CLASSES = ("--prompt_template", "{sentence}", "--label_column", "mood")


def test_an_encoder_decoder_is_fine_tuned_and_loads_in_plain_peft(bases, data, tmp_path):
    assert call("finetune", *flags("seq2seq", bases / "t5", data, tmp_path / "out", *SEQ2SEQ)) == 0
    base = AutoModelForSeq2SeqLM.from_pretrained(bases / "t5")
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    assert model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    spectrum = hrp.Spectrum.load(tmp_path / "out" / "spectrum")
    assert spectrum.provenance["steps"] == 5
    assert {name.rpartition(".")[2] for name in spectrum} == {"q", "v"}
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "out" / "README.md").read_text()


def test_a_classifier_is_fine_tuned_with_its_head(bases, data, tmp_path, capsys):
    output = tmp_path / "out"
    given = (*CLASSES, "--eval_strategy", "steps", "--eval_steps", "4")
    split = (*given, "--dataset_test_split", "train")
    assert call("finetune", *flags("classification", bases / "bert", data, output, *split)) == 0
    assert "eval_accuracy" in capsys.readouterr().out
    base = AutoModelForSequenceClassification.from_pretrained(bases / "bert", num_labels=2)
    model = PeftModel.from_pretrained(base, output)
    assert any("classifier" in name for name in model.state_dict() if "modules_to_save" in name)
    assert call("finetune", *flags("classification", bases / "bert", data, output, *split)) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


MOODS = ["calm", 'it\'s "odd"', "joy", "rage"]


def test_a_classifier_of_four_worded_classes_is_loaded_by_its_card_s_code(bases, tmp_path):
    """The code is run as printed, in a process that knows nothing else."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{i} plus 1", "mood": MOODS[i % 4]} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    given = ("--label_column", "mood")
    assert call("finetune", *flags("classification", bases / "bert", path, output, *given)) == 0
    config = AutoConfig.from_pretrained(output)
    assert config.num_labels == 4
    assert config.id2label == dict(enumerate(MOODS))
    assert config.label2id == {name: number for number, name in enumerate(MOODS)}
    assert not list(output.glob("checkpoint-*/config.json"))  # HF's Trainer would take it for ours
    code = (output / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = "AutoConfig, AutoModelForSequenceClassification"
    script = f"from transformers import {names}\nfrom peft import PeftModel\n{code}"
    script += "print([model.config.id2label[n] for n in range(model.config.num_labels)])\n"
    # The card names no folder of the machine, but for the last part of its path.
    (tmp_path / "bert").symlink_to(bases / "bert")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(MOODS)


def test_a_share_of_the_rows_is_held_out_as_test_data(bases, data, tmp_path, capsys):
    given = (*CLASSES, "--eval_strategy", "steps", "--eval_steps", "4", "--test_split_size", "0.25")
    output = tmp_path / "out"
    assert call("finetune", *flags("classification", bases / "bert", data, output, *given)) == 0
    assert "eval_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("seq2seq", (), "must have the columns prompt+completion, got ['sentence', 'mood']"),
        ("classification", (), "`--label_column` must be one of ['sentence', 'mood'], got 'label'"),
        ("classification", ("--label_column", "mood"), "must have the columns text+mood"),
        ("classification", SEQ2SEQ, "`--completion_template` goes with `--task seq2seq`"),
        ("regression", (), "invalid choice: 'regression'"),
    ],
)
def test_bad_input_is_refused(bases, data, tmp_path, capsys, task, given, message):
    assert call("finetune", *flags(task, bases / "t5", data, tmp_path / "out", *given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_classes_are_refused(bases, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 0.5}\n{"text": "b", "label": 1.5}\n')
    assert call("finetune", *flags("classification", bases / "bert", path, tmp_path / "out")) == 2
    assert "column 'label' must hold two or more classes" in capsys.readouterr().err
