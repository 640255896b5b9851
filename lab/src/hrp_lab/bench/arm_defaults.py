"""Hold the default settings of kinds of arms, which an experiment's YAML file may override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARM_DEFAULTS: dict[str, dict[str, Any]] = {
    "hrp": {
        "preheat_rank": 128,
        "preheat_steps": 50,
        "learning_rate": 1e-3,
        "train_factors": "both",
        "scale": 1.0,
        "truncation": "loss",
        "statistics_steps": 8,
        "warmup_share": 0.3,
        "keep": True,
    },
    "tries": {"newton": 0.0, "drift": 0.0, "moments": False, "optimizer": "adamw",
              "frozen_magnitude": False, "use_dora": False},
    "squeeze": {"rank": 128, "tail_share": 0.2},
    "auto": {"direction": "AB", "max_share": 0.4, "subspace_tolerance": None,
             "subspace_window": None},
    "gradient": {"batches": 32},
    "covariance": {"rows": 256},
    "eva": {"rho": 2.0, "tau": 0.99, "max_batches": 256},
    "oracle": {"learning_rate": 5e-4, "steps": None},
    "loraplus": {"ratio": 16.0},
    "adalora": {"init_rank": None, "initial_share": 0.1, "final_share": 0.3, "interval": 10},
}  # fmt: skip
"""Each section holds a kind's settings; the records of an arm hold the sections that it uses.

- hrp: see `hrp.HRPConfig`; ``learning_rate`` is preheating's, ``preheat_steps`` a number or a
  share of all steps of the run. Both have fixed defaults here: a record holds what was run. An
  experiment whose records are older than the last four settings sets them to null, which leaves
  them out of the config and so out of the run's id; its arms do what they did: the plain cut,
  nothing kept, DoRA preheated as LoRA.
- squeeze: rank that is trained before the cut; share of the steps that follow it.
- auto: for "hrp-auto": direction, the most preheating as a share of all steps, and settings of
  HRPConfig.
- gradient: batches whose gradients are averaged (gradient-svd, lora_ga).
- covariance: rows whose activations make CorDA's covariances.
- eva: PEFT's ``EvaConfig``; ``max_batches`` ends what would not converge.
- oracle: rate and steps (default: all) of the full fine-tuning that gives the direction.
- loraplus: learning rate of ``lora_B`` over that of ``lora_A``.
- adalora: initial rank (default: 1.5 r), shares of the steps before and after the budgeting,
  steps between two allocations.
"""


def adalora_fields(settings: Mapping[str, Any], rank: int, steps: int) -> dict[str, Any]:
    """Turn section ``adalora`` into fields of PEFT's ``AdaLoraConfig`` at ``rank``, ``steps``."""
    return {
        "init_r": settings.get("init_rank") or round(1.5 * rank),
        "target_r": rank,
        "tinit": round(settings["initial_share"] * steps),
        "tfinal": round(settings["final_share"] * steps),
        "deltaT": settings["interval"],
        "total_step": steps,
    }
