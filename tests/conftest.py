"""The package's types are checked by beartype in all tests; fixtures that many tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# The modules whose functions take tensors; elsewhere our own messages must come through.
TENSOR_MODULES = ["hrp.spectra", "hrp.adapters.layers", "hrp.initialization", "hrp_lab.theory"]
install_import_hook(TENSOR_MODULES, "beartype.beartype")

import pytest
import torch
from peft import PeftModel

from helpers.tiny import collate, tiny_llama, token_rows, with_lora

torch.set_num_threads(1)


@pytest.fixture
def model() -> PeftModel:
    return with_lora(tiny_llama())


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return collate(token_rows(4))
