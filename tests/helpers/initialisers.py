"""Start a variant by HRP or by one of PEFT's own initialisers: a function for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import EvaConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.eva import (
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor

import hrp
from helpers.variants import Variant

EVA_BATCHES = 60


def call(model: torch.nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)


def one_row_each(batch: Any) -> Iterator[Any]:
    """Yield the rows of a batch singly, because CorDA's hook squeezes the batch's axis away."""
    size = len(batch["input_ids"] if isinstance(batch, dict) else batch)
    for i in range(size):
        if isinstance(batch, dict):
            yield {key: value[i : i + 1] for key, value in batch.items()}
        else:
            yield batch[i : i + 1]


def by_hrp(variant: Variant) -> PeftModel:
    model = variant.model()
    batches, loss_fn = variant.data()
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2, direction="A")
    return hrp.apply_hrp(model, config, dataloader=batches, loss_fn=loss_fn)


def by_setting(name: Any) -> Callable[[Variant], PeftModel]:
    return lambda variant: variant.model(init_lora_weights=name)


class Limited:
    """Batches that may be read a limited number of times: EVA would go on for ever if unsettled."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.left = batches, EVA_BATCHES

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError(f"EVA has not settled after {EVA_BATCHES} batches")
            yield batch


def positions(batch: Any, config: Any) -> Tensor | None:
    if isinstance(batch, dict):
        return prepare_model_inputs_fn_language_modeling(batch, config)
    return None


def layer_inputs(inputs: Any, chosen: Tensor | None, layer: str) -> Tensor:
    """Choose tokens as PEFT does, and all rows where a layer sees vectors and not sequences."""
    tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    if chosen is None:
        return tensor.flatten(0, -2)
    if tensor.dim() == 2 and tensor.is_floating_point():
        return tensor
    return prepare_layer_inputs_fn_language_modeling(inputs, chosen, layer)


def by_eva(variant: Variant) -> PeftModel:
    model = variant.model(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    initialize_lora_eva_weights(
        model,
        Limited(variant.data()[0][:1]),
        forward_fn=call,
        prepare_model_inputs_fn=positions,
        prepare_layer_inputs_fn=layer_inputs,
        show_progress_bar=False,
    )
    return model


def by_corda(variant: Variant) -> PeftModel:
    from peft.tuners.lora.corda import preprocess_corda  # needs attrs, which PEFT does not install

    base = variant.base()
    config = variant.config(init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm"))

    def run() -> None:
        for batch in variant.data()[0]:
            for row in one_row_each(batch):
                call(base, row)

    preprocess_corda(base, config, run_model=run)
    return variant.adapt(base, config)


def by_lora_ga(variant: Variant) -> PeftModel:
    base = variant.base()
    config = variant.config(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    batches, loss_fn = variant.data()

    def step() -> None:
        for batch in batches:
            (call(base, batch).loss if loss_fn is None else loss_fn(base, batch)).backward()

    preprocess_loraga(base, config, step)
    return variant.adapt(base, config)


STARTS: dict[str, Callable[[Variant], PeftModel]] = {
    "hrp": by_hrp,
    "pissa": by_setting("pissa"),
    "olora": by_setting("olora"),
    "eva": by_eva,
    "corda": by_corda,
    "lora_ga": by_lora_ga,
    "orthogonal": by_setting("orthogonal"),
}
