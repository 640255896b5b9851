from __future__ import annotations

import json
import re
from itertools import islice

import pytest
import torch

from hrp.demo import BASE, load_base
from hrp.demo.data import answer_collator, answer_dataset, read_problems
from hrp_lab.demo_base.corpus import documents
from hrp_lab.demo_base.pretrain import HELD_OUT, PackedText, PretrainConfig, build_tokenizer


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.fixture(scope="module")
def corpus_loss(base) -> float:
    model, tokenizer = base
    blocks = islice(PackedText(tokenizer, seed=HELD_OUT + 7, length=128), 32)
    ids = torch.stack([block["input_ids"] for block in blocks])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_the_base_is_a_small_float32_llama_with_tied_embeddings(base) -> None:
    model, tokenizer = base
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert model.num_parameters() <= 1_200_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_embedded_files_stay_under_two_and_a_half_megabytes() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 2_500_000


def test_two_loads_share_no_weights() -> None:
    first, second = load_base()[0], load_base()[0]
    first.get_input_embeddings().weight.data.zero_()
    assert float(second.get_input_embeddings().weight.detach().abs().sum()) > 0


def test_the_base_models_new_text_of_its_own_corpus(base, corpus_loss: float) -> None:
    provenance = json.loads((BASE / "provenance.json").read_text())
    assert corpus_loss < 0.3 * provenance["first_loss"]
    assert corpus_loss == pytest.approx(provenance["held_out_loss"], abs=0.1)


def test_the_base_finds_random_tokens_far_less_likely(base, corpus_loss: float) -> None:
    model, tokenizer = base
    ids = torch.randint(2, len(tokenizer), (16, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss) > corpus_loss + 4


def test_word_problems_are_a_shift_for_the_base(base, corpus_loss: float) -> None:
    model, tokenizer = base
    rows = answer_dataset(tokenizer, read_problems("test")[:64])
    with torch.no_grad():
        assert float(model(**answer_collator(tokenizer)(rows)).loss) > corpus_loss + 1


def test_text_survives_the_tokenizer_and_every_digit_is_a_token(base) -> None:
    _, tokenizer = base
    text = "Nora's 12 + 345 = 357;\nÜber-ÄÖ 漢字?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("345")) == 3
    assert len(tokenizer.encode(" 345")) == 3


def test_every_word_of_the_word_problems_is_one_token(base) -> None:
    _, tokenizer = base
    text = "\n".join(f"{p['question']}\n{p['answer']}" for p in read_problems()[:400])
    words = set(re.findall(r" ?[A-Za-z]+|#+", text))
    assert {word for word in words if len(tokenizer.encode(word)) > 1} == set()


def test_the_script_rebuilds_the_embedded_tokenizer(base) -> None:
    seed = json.loads((BASE / "provenance.json").read_text())["config"]["seed"]
    rebuilt = build_tokenizer(PretrainConfig(seed=seed))
    assert rebuilt.get_vocab() == base[1].get_vocab()
    text = "\n".join(islice(documents(5), 50))
    assert rebuilt.encode(text) == base[1].encode(text)
