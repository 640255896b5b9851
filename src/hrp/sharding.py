"""Engines that take the model's parameters over for good cannot preheat in-process."""

from __future__ import annotations

import os
from typing import Any

# Accelerate's own switches, which `accelerate launch` and TrainingArguments set.
_SWITCHES = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}


def check_engine(args: Any = None) -> None:
    """Raise ``ValueError`` under FSDP or DeepSpeed, before any training.

    Both replace the model's parameters by shards, which cannot be undone to leave the model as it
    was, and neither runs two trainers in one process. DDP and a single process are fine.
    """
    for engine, switch in _SWITCHES.items():
        if _is_on(engine, switch, args):
            raise ValueError(
                f"{engine} shards the model's parameters for good, so preheating cannot run in the "
                "process that fine-tunes; use two launches: preheat in a first launch without "
                f"{engine} (one GPU or DDP) and `spectrum.save(folder)`, then in the second call "
                "`initialize_lora_hrp_weights(model, Spectrum.load(folder))` before the trainer "
                "is made"
            )


def _is_on(engine: str, switch: str, args: Any) -> bool:
    if os.environ.get(switch, "false").lower() in ("true", "1"):
        return True
    return bool(getattr(args, engine.lower(), None))
