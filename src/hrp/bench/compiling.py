"""``torch.compile`` for runs: each decoder layer once a process, shared by its layers and runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from torch import nn

# Accelerate's settings; lengths differ from batch to batch, so shapes are dynamic.
_SETTINGS = {
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
}
_RECOMPILE_LIMIT = 64  # kinds of adapters that one process may meet; torch gives up after 8


@contextmanager
def compiled_layers(active: bool) -> Iterator[None]:
    """Within, a ``Trainer`` with ``torch_compile=True`` compiles layer by layer."""
    if not active:
        yield
        return
    import torch._dynamo.config as dynamo

    with (
        mock.patch.dict(os.environ, _SETTINGS),  # also takes back what TrainingArguments sets
        dynamo.patch(
            recompile_limit=_RECOMPILE_LIMIT, accumulated_recompile_limit=16 * _RECOMPILE_LIMIT
        ),
    ):
        yield


def compiles(model: nn.Module) -> bool:
    """Whether ``model`` has no adapters of a kind that is slower to compile than to run."""
    return not any(
        isinstance(one, AdaLoraLayer) or (isinstance(one, LoraLayer) and one.lora_variant)
        for one in model.modules()
    )
