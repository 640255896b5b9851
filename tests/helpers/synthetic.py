"""Makes synthetic benchmarks: scores with known truth, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hrp_lab.bench.costs import Costs
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.sweeps import Best

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
ARMS = ("lora", "orthogonal", "pissa", "hrp-a", "hrp-b", "hrp-ab")


def planted_scores(
    generator: np.random.Generator,
    arms: Sequence[str] = ARMS,
    seeds: int = 3,
    curvature: float = 1.0,
    effects: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Draw (arm, rate, seed): a parabola over rates, shared seed effects, unit-normal noise."""
    shape = (len(arms), len(RATES), seeds)
    sweep = curvature * (np.arange(len(RATES)) - 2.0) ** 2
    planted = np.array([(effects or {}).get(arm, 0.0) for arm in arms])
    seed_effects = 2 * generator.standard_normal(seeds)
    noise = generator.standard_normal(shape)
    return sweep[None, :, None] + planted[:, None, None] + seed_effects + noise


def records_of(values: np.ndarray, arms: Sequence[str] = ARMS, **config) -> list[Record]:
    """Return a record for each cell; the metric is ``eval_loss``."""
    return [
        Record(
            RunSpec("synthetic", arm, "gsm8k", seed, RATES[rate], config),
            "ok",
            metrics={"eval_loss": float(values[index, rate, seed])},
        )
        for index, arm in enumerate(arms)
        for rate in range(values.shape[1])
        for seed in range(values.shape[2])
    ]


def full_record(arm="hrp-ab", seed=0, rate=1e-3, steps=420, charged=30, loss=1.4, **config):
    """Return a record with every field filled, as a run would write it."""
    curve = tuple(
        (step, loss + 2.0 * np.exp(-step / 60) + 0.01 * seed) for step in range(5, steps, 5)
    )
    return Record(
        RunSpec(
            "standin-a",
            arm,
            "gsm8k",
            seed,
            rate,
            {"model": "base-lm-30m", "rank": 4, "finetune_steps": steps} | config,
        ),
        "ok",
        metrics={"eval_loss": loss, "exact_match": 0.05},
        losses=tuple((step, float(value)) for step, value in curve),
        preheat_losses=tuple(float(3 - 0.03 * step) for step in range(charged)),
        costs=Costs(
            preheat_steps=charged,
            finetune_steps=steps,
            charged_steps=charged,
            tokens=(steps + charged) * 4096,
            flops=(steps + charged) * 4.9e11,
            wall_s=60.0,
            peak_memory_bytes=3 * 2**30,
            extra_parameters=2_000_000 if charged else 0,
        ),
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=False,
        versions={"python": "3.11.2", "torch": "2.13.0", "peft": "0.21.2"},
        device="NVIDIA H200",
        command="hrp-lab bench run experiments/standin-a.yaml",
        started="2026-01-02T03:04:05+00:00",
        ended="2026-01-02T03:05:05+00:00",
    )


JUDGED = {
    "lora": (0, 1.45),
    "hrp-ab": (30, 1.42),
    "oracle-b": (0, 1.40),
}  # steps charged, loss at the best rate


def benchmark(totals=(450,)):
    """Return all arms at equal total steps, the charged ones at equal fine-tuning steps too."""
    return [
        full_record(arm, seed, rate, steps, charged, loss + 0.001 * seed + abs(rate - 2e-3) * 10)
        for total in totals
        for arm, (charged, loss) in JUDGED.items()
        for steps in {total, total - charged}
        for seed in range(3)
        for rate in (1e-3, 2e-3, 4e-3)
    ]


def at_best(**arms):
    """Arms at their best rate, by the values over seeds 0, 1, ..."""
    return {arm: Best(arm, 1e-3, {1e-3: dict(enumerate(values))}) for arm, values in arms.items()}
