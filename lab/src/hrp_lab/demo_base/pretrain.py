"""Make the demo's embedded base model: ``python -m hrp_lab.demo_base.pretrain OUT --steps N``.

It is a Llama of about one million parameters with a byte-level BPE tokenizer, both trained from
nothing on ``corpus``. This runs on the CPU or on one GPU; ``provenance.json`` beside the weights
says how they were made.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import IterableDataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hrp.files import write_folder
from hrp.versions import installed_versions
from hrp_lab.demo_base.corpus import documents

_PROGRAM = "python -m hrp_lab.demo_base.pretrain"
EOS, PAD = "<eos>", "<pad>"
MAX_LENGTH = 512
HELD_OUT = 1_000_000  # added to the seed: text that training never draws


@dataclass(frozen=True)
class PretrainConfig:
    """Says how the base model is made; lengths are in tokens."""

    steps: int = 3000
    seed: int = 0
    batch_size: int = 32
    length: int = 128
    learning_rate: float = 3e-3
    vocab_size: int = 832
    tokenizer_documents: int = 20_000
    log_every: int = 50


class PackedText(IterableDataset[dict[str, torch.Tensor]]):
    """Cuts blocks of ``length`` tokens from the endless stream of documents of a seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, length: int) -> None:
        """Keep what is needed to restart the stream from its beginning."""
        self.tokenizer, self.seed, self.length = tokenizer, seed, length

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield ``input_ids`` and ``labels``, both (length,) and equal."""
        tokens: list[int] = []
        for document in documents(self.seed):
            tokens += [*self.tokenizer.encode(document), self.tokenizer.eos_token_id]
            while len(tokens) >= self.length:
                block, tokens = torch.tensor(tokens[: self.length]), tokens[self.length :]
                yield {"input_ids": block, "labels": block.clone()}


def build_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most ``vocab_size`` tokens in which each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = islice(documents(config.seed), config.tokenizer_documents)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=MAX_LENGTH
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained base model, float32, drawn from the global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # at this size faster on a CPU than the fused kernel
    return model


def pretrain(out: Path, config: PretrainConfig, command: str) -> dict[str, Any]:
    """Train the base model and write it, its tokenizer and its provenance into the new ``out``.

    AdamW, bfloat16 autocast, a cosine learning rate. Returns the provenance. ``out`` appears
    complete or not at all.

    Raises:
        FileExistsError: ``out`` exists already.
    """
    provenance: dict[str, Any] = {}

    def write(folder: Path) -> None:
        set_seed(config.seed)
        tokenizer = build_tokenizer(config)
        model = build_model(tokenizer)
        with tempfile.TemporaryDirectory() as scratch:
            provenance.update(command=command, **_train(model, tokenizer, config, scratch))
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")

    write_folder(out, write)
    return provenance


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    scratch: str,
) -> dict[str, Any]:
    """Train ``model`` in place; return what the provenance says of it."""
    held_out = PackedText(tokenizer, config.seed + HELD_OUT, config.length)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=scratch,
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, config.steps // 20),
            adam_beta2=0.95,
            weight_decay=0.1,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            logging_steps=config.log_every,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=PackedText(tokenizer, config.seed, config.length),
        eval_dataset=list(islice(held_out, 8 * config.batch_size)),
        data_collator=default_data_collator,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "first_loss": float(losses[0]),
        "final_loss": float(losses[-1]),
        "held_out_loss": trainer.evaluate()["eval_loss"],
        "seconds": round(seconds),
        "device": model.device.type,
        "versions": installed_versions(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of this script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    defaults = PretrainConfig()
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Train the demo's base model from nothing on text made here.",
        epilog=f"example: {_PROGRAM} /tmp/base --steps 3000 --threads 1",
    )
    parser.add_argument("out", type=Path, help="folder to write, must not exist")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = PretrainConfig(steps=options.steps, seed=options.seed)
    try:
        provenance = pretrain(options.out, config, shlex.join([*_PROGRAM.split(), *arguments]))
    except FileExistsError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}: held-out loss {provenance['held_out_loss']:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
