"""Holds an embedded base model and its task, enough to see HRP work offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE = Path(__file__).parent / "base"


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a fresh copy of the demo's model, in float32 and eval mode, and its tokenizer.

    ``python -m hrp_lab.demo_base.pretrain`` makes the weights, in bfloat16, for ``BASE``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(BASE)
