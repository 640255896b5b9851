"""Which start reaches which LoRA: measured, for HRP and for PEFT's own initialisers.

python tests/breadth/compatibility.py docs/compatibility.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as pytest's `pythonpath` does
    sys.path.insert(0, str(Path(__file__).parents[1]))

import peft
import torch
from peft import EvaConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.eva import prepare_model_inputs_fn_language_modeling
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor
from variants import ADALORA, QUANTISED, VARIANTS, Variant

import hrp

ROWS = VARIANTS | {"AdaLoRA": ADALORA} | QUANTISED
SILENT, PART, REFUSED = "silent default", "part", "refused"
NOT_THERE = "–"
EVA_BATCHES = 60
WORDS = 14

HEAD = """# Compatibility

Which start reaches which kind of LoRA, measured: every cell is what happened when the start in
its column was put on the adapter in its row, on a tiny model on the CPU, by
[`tests/breadth/compatibility.py`](https://github.com/hrp-lora/hrp-lora) with {versions}. HRP goes
through the same function as PEFT's own initialisers. Other versions may behave otherwise.
"""


def call(model: torch.nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)


def one_row_each(batch: Any) -> Iterator[Any]:
    """CorDA's hook squeezes the batch's axis away."""
    size = len(batch["input_ids"] if isinstance(batch, dict) else batch)
    for i in range(size):
        if isinstance(batch, dict):
            yield {key: value[i : i + 1] for key, value in batch.items()}
        else:
            yield batch[i : i + 1]


def by_hrp(variant: Variant) -> PeftModel:
    model = variant.model()
    batches, loss_fn = variant.data()
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2)
    return hrp.apply_hrp(model, config, dataloader=batches, loss_fn=loss_fn)


def by_setting(name: Any) -> Callable[[Variant], PeftModel]:
    return lambda variant: variant.model(init_lora_weights=name)


class Limited:
    """The batches again and again, as EVA reads them; it would go on for ever if it never settles."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.left = batches, EVA_BATCHES

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
    """PEFT's choice of tokens; all rows where a layer sees no batch of sequences."""
    tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    if chosen is None or tensor.dim() < 3:
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor[chosen.T.unbind()]


def by_eva(variant: Variant) -> PeftModel:
    model = variant.model(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    initialize_lora_eva_weights(
        model,
        Limited(variant.data()[0]),
        forward_fn=call,
        prepare_model_inputs_fn=positions,
        prepare_layer_inputs_fn=layer_inputs,
        show_progress_bar=False,
    )
    return model


def by_corda(variant: Variant) -> PeftModel:
    from peft.tuners.lora.corda import preprocess_corda  # needs attrs, which PEFT does not install

    base = variant.base()
    config = variant.config(
        init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm")
    )

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


@dataclass(frozen=True)
class Factors:
    """The two factors of one module, and whether it is an embedding."""

    lora_A: Tensor
    lora_B: Tensor
    embedding: bool

    def are_default(self, reference: Factors) -> bool:
        """Whether they are what ``init_lora_weights=True`` makes, or zeros.

        That is: bit-equal to the default under the same seed; or, as other draws may have come
        before, lora_B = 0 and every entry of lora_A within Kaiming's bound 1 / sqrt(d_in). Rows
        of norm 1 cannot be within it (unless all entries are equal), so no direction is mistaken.
        An embedding's default is lora_A = 0.
        """
        same = [
            one.shape == other.shape and torch.equal(one, other)
            for one, other in ((self.lora_A, reference.lora_A), (self.lora_B, reference.lora_B))
        ]
        if all(same) or (self.embedding and not self.lora_A.any()):
            return True
        bound = self.lora_A[0].numel() ** -0.5 * (1 + 2**-8)  # half precision rounds
        return not self.lora_B.any() and bool(self.lora_A.abs().max() <= bound)


def factors(model: PeftModel) -> dict[str, Factors]:
    """Of every LoRA layer of the adapter, by the module's path in the base model."""
    found = {}
    for path, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            embedding = "default" in layer.lora_embedding_A
            A = (layer.lora_embedding_A if embedding else layer.lora_A)["default"]
            B = (layer.lora_embedding_B if embedding else layer.lora_B)["default"]
            pair = (getattr(one, "weight", one).detach() for one in (A, B))
            found[path] = Factors(*pair, embedding)
    return found


def output(model: torch.nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        result = call(model.eval(), batch)
    return getattr(result, "logits", result).double()


def far(one: Tensor, other: Tensor, variant: Variant) -> bool:
    """Whether two outputs differ by more than rounding, relative to their size."""
    tolerance = 1e-4 if variant.dtype is None else 4 * torch.finfo(variant.dtype).eps
    return not bool((one - other).norm() <= tolerance * other.norm())


def judged(variant: Variant, model: PeftModel, messages: list[str]) -> str:
    """The cell of a start that raised nothing."""
    reference = factors(variant.model(init_lora_weights=True))
    started = {name: one for name, one in factors(model).items()}
    default = [n for n, one in started.items() if one.are_default(reference[n])]
    said = ", with a warning" if any("initialized with" in m for m in messages) else ""
    if len(default) == len(started):
        return (SILENT if not said else "default") + said
    cell = "started" if not default else f"{PART}: {len(started) - len(default)} of {len(started)}"
    batch = variant.data()[0][0]
    base = output(variant.base(), batch)
    with model.disable_adapter():
        changed = far(output(model, batch), base, variant)
    cell += ", base changed" if changed else ""
    return cell + (", not a no-op" if far(output(model, batch), base, variant) else "") + said


def outcome(initialiser: str, variant: Variant) -> tuple[str, str]:
    """What a start does on a variant: the cell, and the error in its own words or ""."""
    if initialiser != "hrp" and "init_lora_weights" in variant.settings:
        return NOT_THERE, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = STARTS[initialiser](variant)
            messages = [str(one.message) for one in caught]
            return judged(variant, model, messages), ""
        except Exception as error:  # whatever it is, it is the finding
            words = " ".join(str(error).split()).split(" ")
            short = " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")
            return REFUSED, f"{type(error).__name__}: {short}"
