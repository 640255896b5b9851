"""Records a run of another tool from within: what it starts from, and its losses.

The tool's own process imports this, so it needs nothing but HRP's core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import TrainerCallback

import hrp.initialization

START, LOSSES, SPECTRUM = "recorded-start.safetensors", "recorded-losses.json", "recorded-spectrum"


class Recorder(TrainerCallback):
    """Writes into ``folder`` the adapter as the first step finds it, each loss, and the spectrum.

    The spectrum is HRP's, if it preheats in this process.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        _keep_spectrum(self.folder / SPECTRUM)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any):
        if state.global_step == 0:
            factors = get_peft_model_state_dict(model, save_embedding_layers=False)
            save_file({k: v.detach().clone() for k, v in factors.items()}, self.folder / START)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any):
        losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        (self.folder / LOSSES).write_text(json.dumps(losses), encoding="utf-8")


def _keep_spectrum(folder: Path) -> None:
    preheat = hrp.initialization.preheat

    def preheat_and_save(*args: Any, **data: Any) -> Any:
        spectrum = preheat(*args, **data)
        spectrum.save(folder)
        return spectrum

    hrp.initialization.preheat = preheat_and_save
