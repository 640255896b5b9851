"""The arguments that a test gives to `hrp.preheat` beside a trainer's class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from helpers.tiny import collate, token_rows


def trainer_arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return arguments, data and collator for a quiet trainer on the CPU."""
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **settings,
    )
    return {"args": args, "train_dataset": token_rows(), "data_collator": collate}
