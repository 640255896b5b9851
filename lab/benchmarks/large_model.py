"""Peak memory and step time of preheating beside what a user would run otherwise, on one GPU.

    python lab/benchmarks/large_model.py --shape 1b --out experiments/results/large-model.jsonl

A Llama of the given shape with random weights in bf16; every way sees the same batch, in one
process, one after the other. Step times are medians; compare them as ratios to plain LoRA. A run
adds one line to the file.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import EvaConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora import initialize_lora_eva_weights, preprocess_loraga
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import hrp
from hrp.adapters.layers import lora_modules
from hrp.adapters.reading import batches_by_shape, read_spectrum
from hrp.files import write_text
from hrp.spectra.factorization import factored_svd
from hrp.versions import installed_versions

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2,
                 "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1024},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
               "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
               "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
               "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP_STEPS, TIMED_STEPS = 2, 8
GIB = 2**30


def base_model(options) -> nn.Module:
    config = LlamaConfig(**SHAPES[options.shape], max_position_embeddings=options.length)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(options.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def with_lora(model: nn.Module, rank: int, **settings) -> PeftModel:
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, **settings)
    return get_peft_model(model, config)


def make_batch(options) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    ids = torch.randint(vocabulary, (options.batch_size, options.length), generator=generator)
    return {"input_ids": ids.to(options.device), "labels": ids.to(options.device)}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None


def step_times(model: nn.Module, batch, device: str) -> list[float]:
    """Seconds of each of `TIMED_STEPS` AdamW steps after the warm-up."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    times = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        synchronize(device)
        started = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times[WARM_UP_STEPS:]


def train_lora(rank: int) -> Callable:
    def way(model, batch, options) -> dict:
        return {"step_seconds": step_times(with_lora(model, rank), batch, options.device)}

    return way


def train_preheating(model, batch, options) -> dict:
    """Steps inside `hrp.preheat` itself, its reading included in the peak.

    The second half of the timed steps is observed for the metric of the loss, the first is not.
    """
    peft_model = with_lora(model, 8)
    stamps: list[float] = []
    peaks: list[float | None] = []

    def loss_fn(prepared, inputs):
        synchronize(options.device)
        stamps.append(time.perf_counter())
        peaks.append(peak_gib(options.device))
        return prepared(**inputs).loss

    length = WARM_UP_STEPS + 2 * TIMED_STEPS + 1
    config = hrp.HRPConfig(
        options.preheat_rank, length, statistics_steps=TIMED_STEPS + 1, warmup_share=0.0
    )
    hrp.preheat(peft_model, config, dataloader=[batch], loss_fn=loss_fn)
    steps = [after - before for before, after in itertools.pairwise(stamps)][WARM_UP_STEPS:]
    plain, observed = steps[:TIMED_STEPS], steps[TIMED_STEPS:]
    return {
        "step_seconds": plain,
        "observed_step_seconds": observed,
        "observed_over_plain": statistics.median(observed) / statistics.median(plain),
        "peak_gib_before_observing": peaks[WARM_UP_STEPS + TIMED_STEPS],
        "peak_gib_observing": peaks[-1],
    }


def train_fully(model, batch, options) -> dict:
    return {"step_seconds": step_times(model, batch, options.device)}


def start_lora_ga(model, batch, options) -> dict:
    config = LoraConfig(
        r=8, target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def train_step() -> None:
        model(**batch).loss.backward()

    return {"start_seconds": timed(lambda: preprocess_loraga(model, config, train_step), options)}


class NotConvergedError(Exception):
    """EVA asked for more batches than it is given."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in what runs longer."""

    def stop(*_) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Limited:
    """So many batches, and no more: EVA goes round its loader until it has converged."""

    def __init__(self, batch: dict[str, torch.Tensor], count: int) -> None:
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self):
        for _ in range(self._count):
            yield dict(self._batch)
        raise NotConvergedError


def start_eva(model, batch, options) -> dict:
    """Random weights and tokens have no leading directions, so EVA may not converge on them.

    Its incremental SVD takes whole batches of activations, so one batch can take many minutes.
    """
    peft_model = with_lora(model, 8, init_lora_weights="eva", eva_config=EvaConfig())
    loader = Limited(batch, options.eva_batches)
    ended = "converged"

    def start() -> None:
        nonlocal ended
        try:
            with at_most(options.eva_seconds):
                initialize_lora_eva_weights(peft_model, loader, show_progress_bar=False)
        except NotConvergedError:
            ended = f"not converged after {options.eva_batches} batches"
        except TimeoutError:
            ended = f"not done after {options.eva_seconds} s"

    return {"start_seconds": timed(start, options), "ended": ended}


def read_all_spectra(model, batch, options) -> dict:
    """The factored SVD of every module at the preheat rank: on the device, then read to the CPU."""
    peft_model = with_lora(model, options.preheat_rank, init_lora_weights=False)
    modules = lora_modules(peft_model, "default")

    def decompose() -> None:
        for _, factors_A, factors_B in batches_by_shape(modules):
            factored_svd(factors_A, factors_B)

    decompose()
    return {
        "modules": len(modules),
        "svd_seconds": [timed(decompose, options) for _ in range(5)],
        "read_seconds": timed(lambda: read_spectrum(modules), options),
    }


def timed(function: Callable[[], object], options) -> float:
    synchronize(options.device)
    started = time.perf_counter()
    function()
    synchronize(options.device)
    return time.perf_counter() - started


def ways(options) -> dict[str, Callable]:
    return {
        "lora r=8": train_lora(8),
        f"preheating R={options.preheat_rank}": train_preheating,
        "full fine-tuning": train_fully,
        "lora_ga (gradient of one batch)": start_lora_ga,
        f"spectra R={options.preheat_rank}": read_all_spectra,
        "eva": start_eva,
    }


def measure(name: str, way: Callable, options) -> dict:
    gc.collect()
    model, batch = base_model(options), make_batch(options)
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        result = way(model, batch, options)
    except torch.OutOfMemoryError as error:
        return {"way": name, "status": "out of memory", "reason": str(error).split(".")[0]}
    result |= {"way": name, "status": "ok", "peak_gib": peak_gib(options.device)}
    if "step_seconds" in result:
        result["median_step_seconds"] = statistics.median(result["step_seconds"])
    return result


def save(results: list[dict], earlier: str, options) -> None:
    record = {
        "shape": options.shape,
        "batch_tokens": [options.batch_size, options.length],
        "gradient_checkpointing": options.gradient_checkpointing,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "results": results,
        "versions": installed_versions(),
        "command": "python " + " ".join(sys.argv),
    }
    write_text(options.out, f"{earlier}{json.dumps(record)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--preheat_rank", type=int, default=128)
    parser.add_argument("--eva_batches", type=int, default=4, help="EVA gets no more than these")
    parser.add_argument("--eva_seconds", type=int, default=600, help="nor more than these")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", help="parts of the names of the ways to measure")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    earlier = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    results: list[dict] = []
    for name, way in ways(options).items():
        if options.only and not any(part in name for part in options.only):
            continue
        results.append(measure(name, way, options))
        shown = {k: v for k, v in results[-1].items() if k != "step_seconds"}
        print(json.dumps(shown), flush=True)
        save(results, earlier, options)


if __name__ == "__main__":
    main()
