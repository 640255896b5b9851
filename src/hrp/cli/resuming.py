"""What a resumed run must have in common with the interrupted one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

# Every other setting may change what is trained. Longer training is allowed, and so is what is
# shown, saved or pushed, where, and how fast the data are read.
FREE = {
    *("max_steps", "num_train_epochs", "preheat_save_steps"),
    *("output_dir", "resume_from_checkpoint", "overwrite", "resume"),
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica"),
    *("log_on_each_node", "include_num_input_tokens_seen", "skip_memory_metrics", "debug"),
    *("push_to_hub", "enable_jit_checkpoint", "local_rank", "ddp_timeout", "dataset_num_proc"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
}
FREE_PREFIXES = ("logging_", "save_", "hub_", "trackio_")
SECRETS = {"token", "use_auth_token"}  # in model_init_kwargs; the record may go to the hub


def binding(*groups: Any) -> dict[str, Any]:
    """Settings in the dataclasses ``groups`` that a resumed run must not change, as JSON types."""
    fields = (
        (field.name, getattr(group, field.name))
        for group in groups
        for field in dataclasses.fields(group)
    )
    found = {
        name: _without_secrets(value)
        for name, value in fields
        if name not in FREE and not name.startswith(FREE_PREFIXES)
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_plain))
    return plain


def _without_secrets(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: entry for key, entry in value.items() if key not in SECRETS}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each setting that differs, with both values.

    A setting that only one of both has came or went with a version of TRL or transformers.
    """
    return [
        f"{name} (was {before[name]!r}, now {now[name]!r})"
        for name in sorted(set(before) & set(now))
        if before[name] != now[name]
    ]
