from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from helpers.tiny import tiny_llama
from helpers.tiny_bench import word_tokenizer, write_lines
from hrp_lab.bench.tasks import TASKS, TaskRequest, load_task
from hrp_lab.bench.tasks.answers import (
    answer_metrics,
    encode,
    exact_match,
    final_number,
    official_metrics,
)
from hrp_lab.bench.tasks.glue import glue_metrics, rows

WORDS = [
    "<pad>", "<eos>", "<unk>", "Question:", "Answer:", "####", "1", "2", "3", "4", "5", "6", "7",
    "8", "9", "one", "plus", "is", "fine", "bad", "cola", "sst2", "sentence:", "acceptable",
    "unacceptable", "negative", "positive", "hypothesis", "premise", "hypothesis:", "premise:",
    "mnli", "entailment", "neutral", "contradiction", "a", "b", "c", "d",
]  # fmt: skip


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def test_the_prompt_and_the_cut_are_left_out_of_the_loss(tokenizer):
    (row,) = encode(tokenizer, [("Question: one", "2 3 4")], max_length=5)
    ids = tokenizer.convert_tokens_to_ids(["Question:", "one", "2", "3", "4"])
    assert row == {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
    assert encode(tokenizer, [("a b c d a", "1")], max_length=5) == []
    (whole,) = encode(tokenizer, [("a", "1")], max_length=5)
    assert whole["labels"][-1] == tokenizer.eos_token_id


def test_answer_loss_is_the_mean_over_all_answer_tokens_whatever_the_batches(tokenizer):
    from transformers import DataCollatorForSeq2Seq

    pairs = [("one", "1 2 3"), ("one plus a", "4"), ("b", "5 6"), ("c d", "7 8 9 1")]
    examples, model = encode(tokenizer, pairs, 32), tiny_llama()
    total, tokens, right = 0.0, 0, 0
    for row in examples:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                total, tokens = total - logits[position, label].item(), tokens + 1
                right += int(logits[position].argmax() == label)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    for size in (1, 3, 8):
        metrics = answer_metrics(model, examples, collator, size)
        assert math.isclose(metrics["eval_loss"], total / tokens, rel_tol=1e-5)
        assert metrics["token_accuracy"] == right / tokens


def test_exact_match_counts_final_numbers_of_generations(tokenizer):
    class Echo(torch.nn.Module):
        """Answers every prompt with its own last word."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate(self, input_ids, **_):
            marker = torch.full_like(input_ids[:, :1], WORDS.index("####"))
            return torch.cat([input_ids, marker, input_ids[:, -1:]], dim=1)

    pairs = [("one plus 3", "#### 3"), ("a 2", "#### 3"), ("one 5", "#### 5"), ("a b", "#### 1")]
    assert exact_match(Echo(), tokenizer, pairs, 4, batch_size=2) == {"exact_match": 0.5}


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### -12", "-12"), ("The answer is: $1,000.50", "1000.5"), ("so 12", None),
     ("#### 3\n#### 4", "3")],
)  # fmt: skip
def test_the_final_number_is_read_as_written(text, number):
    assert final_number(text) == number


def test_gsm8k_reads_a_local_folder_without_its_calculator_notes(tmp_path, tokenizer):
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    row = {"question": "one plus 2", "answer": "1 <<1+2=3>> 3 #### 3"}
    write_lines(tmp_path / "data" / "train.jsonl", [row] * 5)
    write_lines(tmp_path / "data" / "test.jsonl", [row] * 3)
    options = {"train_rows": 4, "generate_rows": 2, "max_new_tokens": 2}
    task = load_task(TaskRequest("gsm8k", str(tmp_path / "model"), str(tmp_path / "data"), options))
    assert len(task.train) == 4
    answer = [label for label in task.train[0]["labels"] if label != -100]
    assert tokenizer.decode(answer) == "1 3 #### 3 <eos>"
    model = task.load_model(torch.float32)
    assert set(task.evaluate(model)) == {"eval_loss", "token_accuracy", "exact_match"}


def test_word_problems_are_judged_by_exact_answers_where_rows_are_asked_for():
    options = {"train_rows": 2, "test_rows": 2, "generate_rows": 2}
    task = load_task(TaskRequest("wordproblems", "", options=options))
    metrics = task.evaluate(task.load_model(torch.float32))
    assert 0 <= metrics["exact_match"] <= 1


def test_metamath_is_shuffled_alike_every_time_and_judged_on_gsm8k(tmp_path, tokenizer):
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"query": f"one {n}", "response": f"{n} The answer is: {n}"} for n in range(1, 10)]
    write_lines(tmp_path / "data" / "metamath.jsonl", rows)
    write_lines(tmp_path / "data" / "test.jsonl", [{"question": "one", "answer": "#### 1"}])
    request = TaskRequest(
        "metamath-gsm8k", str(tmp_path / "model"), str(tmp_path / "data"),
        {"train_rows": 9, "generate_rows": 0},
    )  # fmt: skip
    first, second = load_task(request), load_task(request)
    assert first.train == second.train
    order = [row["input_ids"][2] for row in first.train]
    assert sorted(order) != order


def glue_folder(tmp_path):
    folder = tmp_path / "glue"
    (folder / "cola").mkdir(parents=True)
    lines = ["gj04\t1\t\tfine a b", "gj04\t0\t*\tbad", 'gj04\t1\t\tfine "quoted']
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        (folder / "cola" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "sst2").mkdir()
    for name in ("train", "dev", "test"):
        (folder / "sst2" / f"{name}.tsv").write_text("sentence\tlabel\nfine a \t1\nbad\t0\n")
    pair = {"premise": "a b", "hypothesis": "c", "label": 2}
    write_lines(folder / "mnli" / "train.jsonl", [pair] * 3)
    write_lines(folder / "mnli" / "validation_matched.jsonl", [pair] * 2)
    return folder


def test_glue_s_local_files_are_read_as_they_are(tmp_path):
    request = TaskRequest("glue-cola", "m", str(glue_folder(tmp_path)))
    assert len(rows(request, "cola", "validation")) == 6
    assert rows(request, "cola", "train")[2] == {"sentence": 'fine "quoted', "label": 1}
    assert rows(request, "sst2", "train") == [
        {"sentence": "fine a ", "label": 1}, {"sentence": "bad", "label": 0},
    ]  # fmt: skip


def test_an_encoder_classifies_with_a_head_of_its_own(tmp_path, tokenizer):
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    task = load_task(TaskRequest("glue-mnli", str(tmp_path / "bert"), str(glue_folder(tmp_path))))
    assert (task.task_type, task.seeded_head) == ("SEQ_CLS", True)
    model = task.load_model(torch.float32)
    assert model.classifier.out_features == 3
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    assert task.evaluate(model)["accuracy"] == 1.0
    assert task.evaluate(model)["eval_loss"] < 1e-6


def test_an_encoder_decoder_writes_the_label_s_word(tmp_path, tokenizer):
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    task = load_task(TaskRequest("glue-cola", str(tmp_path / "t5"), str(glue_folder(tmp_path))))
    assert task.task_type == "SEQ_2_SEQ_LM"
    words = ["cola", "sentence:", "fine", "a", "b"]
    assert task.train[0]["input_ids"] == tokenizer.convert_tokens_to_ids(words)
    assert task.train[1]["labels"] == tokenizer.convert_tokens_to_ids(["unacceptable"])
    model = task.load_model(torch.float32)
    metrics = task.evaluate(model)
    assert set(metrics) == {"accuracy", "matthews_correlation"}
    model.generate = lambda input_ids, **_: torch.full(
        (len(input_ids), 1), WORDS.index("acceptable")
    )
    assert task.evaluate(model)["accuracy"] == 4 / 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cola", {"matthews_correlation": 1 / 3, "accuracy": 2 / 3}),
     ("mrpc", {"f1": 2 / 3, "accuracy": 2 / 3}), ("sst2", {"accuracy": 2 / 3})],
)  # fmt: skip
def test_metrics_are_glue_s_own(name, expected):
    metrics = glue_metrics(name, [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1])
    assert set(metrics) == set(expected)
    for key, value in expected.items():
        assert math.isclose(metrics[key], value)


def test_word_problems_need_nothing(tmp_path):
    task = load_task(TaskRequest("wordproblems", "any", None, {"train_rows": 8, "test_rows": 4}))
    assert len(task.train) == 8
    metrics = task.evaluate(task.load_model(torch.float32))
    assert 0 < metrics["eval_loss"] < 20


def test_official_numbers_keep_lm_eval_s_names(monkeypatch, tmp_path):
    results = {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25,
                       "exact_match_stderr,strict-match": 0.1, "acc,none": 0.5,
                       "sample_len": 6}}  # fmt: skip
    harness = types.ModuleType("lm_eval")
    harness.simple_evaluate = lambda model, tasks, log_samples: {"results": results}
    loader = types.ModuleType("lm_eval.models.huggingface")
    loader.HFLM = lambda pretrained, tokenizer, batch_size: pretrained
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.models", types.ModuleType("lm_eval.models"))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", loader)
    assert official_metrics(tiny_llama(), None, ["gsm8k"], 8) == {
        "lm_eval_gsm8k_exact_match_strict_match": 0.25, "lm_eval_gsm8k_acc": 0.5,
    }  # fmt: skip


def test_a_missing_file_an_unknown_option_and_an_unknown_task_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no option \['rows'\]; its options are"):
        load_task(TaskRequest("gsm8k", "m", str(tmp_path), {"rows": 3}))
    with pytest.raises(FileNotFoundError, match="in_domain_train"):
        rows(TaskRequest("glue-cola", "m", str(tmp_path)), "cola", "train")
    with pytest.raises(ValueError, match="`tasks` must be one of"):
        load_task(TaskRequest("glue", "m"))


def test_every_task_names_a_module_with_a_metric():
    for name, (module, metric) in TASKS.items():
        assert module.isidentifier(), name
        assert metric, name
