"""What each initialiser does with each of PEFT's LoRA variants: measured, and written as a page.

    PYTHONPATH=tests python tests/breadth/compatibility.py docs/compatibility.md

A module counts as started if both factors are non-zero, or the non-zero one is orthogonal: PEFT's
own default (one factor random, the other zero) is neither.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    EvaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor
from variants import VARIANTS, Variant

import hrp
from hrp.layers import LoraModule, lora_modules
from hrp.versions import installed_versions

CONFIG = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2)
ROWS = {
    name: variant
    for name, variant in VARIANTS.items()
    if not name.startswith("init_lora_weights")  # those are columns
}


@dataclass(frozen=True)
class Cell:
    """``text`` for the table; ``detail``, where there is one, for the list below it."""

    text: str
    detail: str = ""


def started_by_hrp(variant: Variant) -> PeftModel:
    model = variant.model()
    batches, loss_fn = variant.data()
    return hrp.apply_hrp(model, CONFIG, dataloader=batches, loss_fn=loss_fn)


def started_by_name(name: str) -> Callable[[Variant], PeftModel]:
    return lambda variant: variant.model(init_lora_weights=name)


def lora_config(variant: Variant, **changes: Any) -> LoraConfig:
    """Settings with the names of the target modules: CorDA and LoRA-GA do not know "all-linear"."""
    made = variant.model().peft_config["default"]
    named = {"r": made.r, "lora_alpha": made.lora_alpha, "target_modules": made.target_modules}
    return LoraConfig(**variant.settings | named | changes)


def each_row(batch: Any) -> list[Any]:
    """Batches of one row, as CorDA's hook expects them."""
    if isinstance(batch, dict):
        return [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(batch["labels"]))]
    return list(batch.split(1))


def losses(variant: Variant, model: Any, rows: bool = False) -> Callable[[], list[Tensor]]:
    batches, loss_fn = variant.data()
    if rows:
        batches = [row for batch in batches for row in each_row(batch)]
    of = loss_fn or (lambda model, batch: model(**batch).loss)
    return lambda: [of(model, batch) for batch in batches]


def wrapped(variant: Variant, base: Any, config: LoraConfig) -> PeftModel:
    return get_peft_model(base, config, autocast_adapter_dtype=variant.half is None)


def started_by_corda(variant: Variant) -> PeftModel:
    base = variant.base()
    config = lora_config(
        variant, init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm")
    )
    run = torch.no_grad()(losses(variant, base, rows=True))
    preprocess_corda(base, config, run_model=run)
    return wrapped(variant, base, config)


def started_by_lora_ga(variant: Variant) -> PeftModel:
    base = variant.base()
    config = lora_config(variant, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    run = losses(variant, base)
    preprocess_loraga(base, config, lambda: [loss.backward() for loss in run()])
    return wrapped(variant, base, config)


def started_by_eva(variant: Variant) -> PeftModel:
    config = lora_config(variant, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    model = wrapped(variant, variant.base(), config)
    batches, _ = variant.data()
    if variant.layers:
        initialize_lora_eva_weights(
            model,
            batches * 8,
            forward_fn=lambda model, batch: model(batch),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda inputs, *_: inputs[0].flatten(0, -2),
            show_progress_bar=False,
        )
        return model
    masked = [batch | {"attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
    initialize_lora_eva_weights(model, masked * 8, show_progress_bar=False)
    return model


INITIALISERS: dict[str, Callable[[Variant], PeftModel]] = {
    "hrp": started_by_hrp,
    "pissa": started_by_name("pissa"),
    "olora": started_by_name("olora"),
    "orthogonal": started_by_name("orthogonal"),
    "eva": started_by_eva,
    "corda": started_by_corda,
    "lora_ga": started_by_lora_ga,
}


def is_started(module: LoraModule) -> bool:
    lora_A, lora_B = (factor.float() for factor in module.views())
    if lora_A.any() and lora_B.any():
        return True
    return is_orthogonal(lora_A) if lora_A.any() else is_orthogonal(lora_B.mT)


def is_orthogonal(rows: Tensor) -> bool:
    gram = rows @ rows.mT
    off = gram - torch.diag(gram.diagonal())
    return bool(off.abs().max() < 0.02 * gram.diagonal().max())  # bfloat16 rounds


@torch.no_grad()
def output(model: Any, batch: Any) -> Tensor:
    model.eval()
    result = model(input_ids=batch["input_ids"]) if isinstance(batch, dict) else model(batch)
    return getattr(result, "logits", result).float()


def outcome(initialiser: str, name: str) -> Cell:
    """Start ``ROWS[name]`` by ``initialiser`` and look at what came of it."""
    variant = ROWS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = INITIALISERS[initialiser](variant)
            return _looked_at(variant, model)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            kind = "refused" if isinstance(error, ValueError | TypeError) else "fails"
            return Cell(kind, f"{type(error).__name__}: {first[:160]}")


def _looked_at(variant: Variant, model: PeftModel) -> Cell:
    modules = lora_modules(model, "default")
    count = sum(is_started(module) for module in modules.values())
    if count == 0:
        return Cell("**default start**")
    text = "started" if count == len(modules) else f"**{count} of {len(modules)} modules**"
    batch = variant.data()[0][0]
    before, now = output(variant.base(), batch), output(model, batch)
    with model.disable_adapter():
        bare = output(model, batch)
    tolerance = 0.02 if variant.half else 1e-4
    if not torch.allclose(bare, before, atol=tolerance):
        text += ", base changed"
    if not torch.allclose(now, before, atol=tolerance):
        text += ", output changed"
    return Cell(text)


HEAD = """# PEFT's variants, and who starts them

What became of each LoRA variant under HRP and under PEFT's own initialisers (PEFT {peft}), on
tiny models, all by one function: `tests/breadth/compatibility.py`, which writes this page; the
tests hold it to what they see.

- *started*: all modules of the adapter start where the initialiser means them to;
- *base changed*: the base weights are others now, so the saved adapter alone does not fit the
  original model; *output changed*: the model computes something else at step 0;
- *k of n modules*: the others have PEFT's default random start, and nothing was raised;
- *default start*: all modules have it, and nothing was raised;
- *refused*: a `ValueError` or `TypeError`; *fails*: any other error. Its first line is below the
  table.

CorDA and LoRA-GA are given the names of the target modules, CorDA one row at a time and EVA masks,
as they need them. AdaLoRA is refused by HRP: its SVD form has no pair of factors to start.

"""


def page() -> str:
    found = {(i, name): outcome(i, name) for name in ROWS for i in INITIALISERS}
    lines = [
        HEAD.format(peft=installed_versions()["peft"]),
        "| variant | " + " | ".join(f"`{name}`" for name in INITIALISERS) + " |\n",
        "| --- " * (len(INITIALISERS) + 1) + "|\n",
        *(row(name, [found[i, name] for i in INITIALISERS]) for name in ROWS),
        "\n## The errors\n\n",
    ]
    errors: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (initialiser, name), cell in found.items():
        if cell.detail:
            errors[initialiser, cell.detail].append(name)
    lines += [f"- `{i}`, {', '.join(n)}: {detail}\n" for (i, detail), n in sorted(errors.items())]
    return "".join(lines)


def row(name: str, cells: list[Cell]) -> str:
    return f"| {name} | " + " | ".join(cell.text for cell in cells) + " |\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
