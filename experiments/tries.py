"""Changes that might make HRP better, as arms of the benchmark; their fate is in docs/LOG.md.

    python experiments/tries.py run experiments/tries-wordproblems.yaml --workers 2

- `ab-unit-a`, `ab-unit-b`: "AB", the same update unevenly split: rows of ``lora_A`` (or columns
  of ``lora_B``) of norm ``hrp.scale``, the rest of the singular values in the other factor.
- `b-ratio`, `ab-ratio`: "B" and "AB" fine-tuned with a rate for ``lora_B`` that is
  ``loraplus.ratio`` times that of ``lora_A``.
- `subspace`: half of preheating trains B with A frozen, the other half A with B frozen at the
  directions found: one round of subspace iteration (docs/theory.md, P10); then "AB".
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Literal

import torch
from peft import PeftModel

import hrp
from hrp.bench import starts
from hrp.bench.arms import loraplus_optimizer, register
from hrp.bench.costs import Costs
from hrp.bench.training import fine_tune
from hrp.bench.workbench import Setup, Start
from hrp.cli.bench import main
from hrp.config import Direction
from hrp.layers import lora_modules, read_spectrum

HRP = {"sections": ("hrp",), "charged": True}
RATIO = {"sections": ("hrp", "loraplus"), "charged": True}


def unevenly_split(setup: Setup, unit: Direction) -> Start:
    """The truncated update; ``unit``'s vectors get norm ``scale``, the other factor the rest."""
    shared, scale = starts.preheated(setup), setup.section("hrp")["scale"]
    model = setup.adapter()
    for name, module in lora_modules(model, "default").items():
        top = shared.spectrum[name].crop(module.rank)
        heavy = top.S / module.scaling / scale
        if unit == "A":
            module.write(scale * top.Vh, top.U * heavy)
        else:
            module.write(heavy[:, None] * top.Vh, scale * top.U)
    return Start(model, shared.costs, shared.losses)


def with_ratio(setup: Setup, direction: Direction) -> Start:
    """A start whose ``lora_B`` has a learning rate of its own."""
    shared, model = starts.preheated(setup), setup.adapter()
    hrp.initialize_lora_hrp_weights(model, shared.spectrum, direction)
    return Start(model, shared.costs, shared.losses, loraplus_optimizer(setup, model))


register("ab-unit-a", "hrp-ab, rows of lora_A of norm `scale`", **HRP)(
    lambda setup: unevenly_split(setup, "A")
)
register("ab-unit-b", "hrp-ab, columns of lora_B of norm `scale`", **HRP)(
    lambda setup: unevenly_split(setup, "B")
)
register("b-ratio", "hrp-b, a rate of its own for lora_B", **RATIO)(
    lambda setup: with_ratio(setup, "B")
)
register("ab-ratio", "hrp-ab, a rate of its own for lora_B", **RATIO)(
    lambda setup: with_ratio(setup, "AB")
)


@register("subspace", "hrp-ab after a round of subspace iteration", **HRP)
def subspace(setup: Setup) -> Start:
    """Charged for both halves."""
    settings = setup.section("hrp")
    rank, steps = settings["preheat_rank"], settings["preheat_steps"]
    scaling = setup.lora_config().lora_alpha / setup.rank
    wide = setup.adapter(r=rank, lora_alpha=rank * scaling)
    tokens = half(setup, wide, "A", steps // 2)
    for module in lora_modules(wide, "default").values():
        lora_A, lora_B = module.views()
        module.write(torch.zeros_like(lora_A), torch.linalg.qr(lora_B)[0])
    tokens += half(setup, wide, "B", steps - steps // 2)
    spectrum = read_spectrum(lora_modules(wide, "default"), {})
    del wide
    model = setup.adapter()
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    return Start(model, Costs(preheat_steps=steps, charged_steps=steps, tokens=tokens))


def half(setup: Setup, wide: PeftModel, frozen: Literal["A", "B"], steps: int) -> int:
    """Train the factor that is not ``frozen``, as preheating does; returns the tokens."""
    for module in lora_modules(wide, "default").values():
        for factor in module.parameters():
            factor.requires_grad_(True)
    hrp.freeze_factor(wide, frozen)
    plan = setup.plan(steps, setup.section("hrp")["learning_rate"])
    seed = starts.PREHEAT_SEED + setup.spec.seed + (frozen == "B") * 500
    constant = {**plan.training, "lr_scheduler_type": "constant"}
    return fine_tune(wide, dataclasses.replace(plan, seed=seed, training=constant)).tokens


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
