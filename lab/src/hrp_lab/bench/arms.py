"""Every initialiser and variant is an arm: a small registered function that makes a start.

An arm makes a `Start` from a `Setup`. PEFT's implementation is used wherever PEFT has one. An arm
that cannot run raises `NotApplicable`; none falls back to another start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from transformers import TrainerCallback, set_seed

from hrp.adapters.freezing import freeze_factor
from hrp.adapters.layers import lora_modules
from hrp.config import Direction
from hrp.initialization import initialize_lora_hrp_weights
from hrp_lab.bench import data_starts, starts
from hrp_lab.bench.arm_defaults import adalora_fields
from hrp_lab.bench.context import NotApplicable, Setup, Start
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.spectrum_cache import Shared


@dataclass(frozen=True)
class Arm:
    """Describes an initialiser or variant.

    Args:
        about: one line for `hrp-lab bench list`.
        start: makes the start of a run.
        sections: those of `hrp_lab.bench.arm_defaults.ARM_DEFAULTS` that it depends on.
        charged: whether its start takes steps or passes that are charged.
    """

    about: str
    start: Callable[[Setup], Start]
    sections: tuple[str, ...] = ()
    charged: bool = False


ARMS: dict[str, Arm] = {}


def register(
    name: str, about: str, **fields: Any
) -> Callable[[Callable[[Setup], Start]], Callable[[Setup], Start]]:
    """Enter a function under ``name``; raise ``ValueError`` where the name is taken."""

    def enter(start: Callable[[Setup], Start]) -> Callable[[Setup], Start]:
        if name in ARMS:
            raise ValueError(f"an arm {name!r} is registered already")
        ARMS[name] = Arm(about, start, **fields)
        return start

    return enter


# --- plain starts, and variants -------------------------------------------------------------


@register("lora", "PEFT's default: Kaiming lora_A, lora_B = 0")
def lora(setup: Setup) -> Start:
    """Start as PEFT does by default; this is the control."""
    return Start(setup.adapter())


register("rslora", "scaling alpha / sqrt(r)")(  # Kalajdzievski (2023)
    lambda setup: Start(setup.adapter(use_rslora=True))
)
register("dora", "weight-decomposed LoRA")(  # Liu et al. (2024)
    lambda setup: Start(setup.adapter(use_dora=True))
)


def _peft_start(name: str) -> Callable[[Setup], Start]:
    def start(setup: Setup) -> Start:
        if name == "orthogonal" and setup.rank % 2:
            raise NotApplicable(f"PEFT's orthogonal start needs an even rank, got {setup.rank}")
        return Start(setup.linear_adapter(init_lora_weights=name))

    return start


for _name, _about in {
    "gaussian": "Gaussian lora_A, lora_B = 0",
    "pissa": "leading singular triples of the weight (PiSSA)",
    "olora": "QR of the weight (OLoRA)",
    "mica": "trailing left singular vectors of the weight, lora_B frozen (MiCA)",
    "orthogonal": "orthogonal lora_A and lora_B, product 0",
}.items():
    register(_name, _about)(_peft_start(_name))


def _random(direction: Direction) -> Callable[[Setup], Start]:
    def start(setup: Setup) -> Start:
        model = setup.adapter()
        generator = torch.Generator().manual_seed(setup.spec.seed)
        for module in lora_modules(model, "default").values():
            factors = [torch.zeros(factor.shape) for factor in module.matrices()]
            torch.nn.init.orthogonal_(factors["AB".index(direction)], generator=generator)
            module.write(factors[0], factors[1])
        return Start(model)

    return start


register("random-a", "random orthonormal rows in lora_A, lora_B = 0")(_random("A"))
register("random-b", "random orthonormal columns in lora_B, lora_A = 0")(_random("B"))


def _with_loraplus(setup: Setup, start: Start) -> Start:
    """Train lora_B at a higher rate, as Hayou et al. (2024) do."""
    optimizer = create_loraplus_optimizer(
        cast(PeftModel, start.model),
        torch.optim.AdamW,
        lr=setup.spec.learning_rate,
        loraplus_lr_ratio=setup.section("loraplus")["ratio"],
    )
    return dataclasses.replace(start, optimizer=optimizer)


register("lora+", "a higher learning rate for lora_B", sections=("loraplus",))(
    lambda setup: _with_loraplus(setup, lora(setup))
)


@register("lora-fa", "lora_A frozen at random, gradient of lora_B corrected")
def lora_fa(setup: Setup) -> Start:
    """Train lora_B alone, by a corrected gradient, as Zhang et al. (2023) do in LoRA-FA."""
    model, config = setup.adapter(), setup.lora_config()
    optimizer = create_lorafa_optimizer(
        model, r=config.r, lora_alpha=config.lora_alpha, lr=setup.spec.learning_rate
    )
    return Start(model, optimizer=optimizer)


class _Allocation(TrainerCallback):
    """Lets AdaLoRA allocate its ranks while the gradients are still there."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Allocate after the optimizer's step, before the gradients are cleared."""
        self._model.base_model.update_and_allocate(state.global_step)


@register("adalora", "ranks allocated by importance", sections=("adalora",))
def adalora(setup: Setup) -> Start:
    """Allocate ranks by importance, as Zhang et al. (2023) do in AdaLoRA."""
    fields = adalora_fields(setup.section("adalora"), setup.rank, setup.steps_after(0))
    plain = setup.lora_config()
    base = setup.base()
    set_seed(setup.spec.seed)
    config = AdaLoraConfig(
        **fields,
        lora_alpha=plain.lora_alpha,
        lora_dropout=plain.lora_dropout,
        target_modules=sorted(setup.targets),
        modules_to_save=plain.modules_to_save,
        task_type=setup.task.task_type,
    )
    model = get_peft_model(base, config)
    extra = setup.adapter_parameters(fields["init_r"]) - setup.adapter_parameters()
    return Start(model, Costs(extra_parameters=extra), callbacks=(_Allocation(model),))


@register("full", "full fine-tuning, in float32")
def full(setup: Setup) -> Start:
    """Train every parameter in float32; bfloat16 weights would round most updates away."""
    model = setup.base(torch.float32).requires_grad_(True)
    extra = sum(p.numel() for p in model.parameters()) - setup.adapter_parameters()
    return Start(model, Costs(extra_parameters=max(extra, 0)), full=True)


# --- starts from the data ------------------------------------------------------------------


register("eva", "leading directions of the activations", sections=("eva",), charged=True)(
    data_starts.eva
)
register("corda", "weight times covariance of the activations", sections=("covariance",),
         charged=True)(data_starts.corda)  # fmt: skip
register("lora_ga", "singular vectors of the gradient, the base changed", sections=("gradient",),
         charged=True)(data_starts.lora_ga)  # fmt: skip


def _directed(
    setup: Setup,
    shared: Shared,
    direction: Direction,
    scale: float = 1.0,
    freeze: bool = False,
    how: Mapping[str, Any] | None = None,
    **variant: Any,
) -> Start:
    """Start a LoRA from a shared spectrum; with ``freeze``, the direction's factor stays."""
    model = setup.adapter(**variant)
    initialize_lora_hrp_weights(model, shared.spectrum, direction, scale, **(how or {}))
    if freeze:
        freeze_factor(model, "A" if direction == "A" else "B")
    return Start(model, shared.costs, shared.losses)


def _from(shared: Callable[[Setup], Shared], direction: Direction) -> Callable[[Setup], Start]:
    return lambda setup: _directed(setup, shared(setup), direction)


_GRADIENT = "singular vectors of the mean gradient, direction {} (as in LoRA-One)"
for _direction, _name in (("A", "gradient-svd"), ("B", "gradient-svd-b")):
    register(_name, _GRADIENT.format(_direction), sections=("gradient",), charged=True)(
        _from(data_starts.gradient, cast(Direction, _direction))
    )


# --- HRP -----------------------------------------------------------------------------------


def _hrp(
    direction: Direction, freeze: bool = False, kept: bool = False, **fixed: Any
) -> Callable[[Setup], Start]:
    """Start from a preheated spectrum; with ``kept`` DoRA is preheated as DoRA."""

    def start(setup: Setup) -> Start:
        section = setup.section("hrp")
        scale = 1.0 if direction == "AB" else section["scale"]
        how = _cut(section) | {name: fixed[name] for name in _CUT if name in fixed}
        variant = {k: fixed[k] for k in ("use_dora", "use_rslora") if k in fixed}
        shared = starts.preheated(setup, use_dora=kept and "truncation" in section)
        return _directed(setup, shared, direction, scale, freeze, how, **variant)

    return start


_CUT: Mapping[str, Any] = {"truncation": "frobenius", "keep": False}


def _cut(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the update is cut; a section that does not say so has the plain cut of old.

    See `hrp_lab.bench.comparisons.superseded`: an old experiment plans and does what it did.
    """
    return {name: section.get(name, old) for name, old in _CUT.items()}


for _name, _about, _start in (
    ("hrp-a", "preheated right singular vectors in lora_A", _hrp("A")),
    ("hrp-b", "preheated left singular vectors in lora_B", _hrp("B")),
    ("hrp-ab", "the preheated update, cut in the metric of the loss", _hrp("AB")),
    ("hrp-ab-frobenius", "the preheated update, cut by the plain SVD",
     _hrp("AB", truncation="frobenius")),
    ("dora-hrp-ab", "DoRA, preheated as DoRA, magnitudes kept",
     _hrp("AB", kept=True, use_dora=True)),
    ("dora-hrp-ab-reset", "DoRA, preheated as LoRA, magnitudes as they follow",
     _hrp("AB", use_dora=True)),
    ("rslora-hrp-ab", "rsLoRA, started as hrp-ab", _hrp("AB", use_rslora=True)),
    ("asymmetric-hrp-a", "as hrp-a, lora_A frozen", _hrp("A", freeze=True)),
    ("asymmetric-hrp-b", "as hrp-b, lora_B frozen", _hrp("B", freeze=True)),
):  # fmt: skip
    register(_name, _about, sections=("hrp",), charged=True)(_start)

register("lora+-hrp-ab", "LoRA+, started as hrp-ab", sections=("hrp", "loraplus"), charged=True)(
    lambda setup: _with_loraplus(setup, _hrp("AB")(setup))
)


@register("random-ab", "random directions with the singular values of hrp-ab", sections=("hrp",),
          charged=True)  # fmt: skip
def random_ab(setup: Setup) -> Start:
    """Control hrp-ab's size: its singular values, at directions that learned nothing."""
    start = _hrp("AB")(setup)
    generator = torch.Generator().manual_seed(setup.spec.seed)
    for module in lora_modules(start.model, "default").values():
        factors = [factor.detach().cpu() for factor in module.matrices()]
        drawn = [
            torch.nn.init.orthogonal_(torch.empty_like(f), generator=generator) for f in factors
        ]
        roots = factors[0].norm(dim=1)  # of balanced factors: the roots of the singular values
        module.write(roots[:, None] * drawn[0], drawn[1] * roots)
    return start


register("squeeze", "LoRA-Squeeze: a high rank for all steps, then the cut",
         sections=("squeeze",))(starts.squeezed_after)  # fmt: skip
register("squeeze-tail", "LoRA-Squeeze with its last steps at the low rank",
         sections=("squeeze",), charged=True)(starts.squeezed_with_tail)  # fmt: skip


@register("hrp-auto", "HRP that stops preheating once the subspaces settle",
          sections=("hrp", "auto"), charged=True)  # fmt: skip
def hrp_auto(setup: Setup) -> Start:
    """Preheat until the subspaces settle; charge the steps that this took."""
    direction, how = setup.section("auto")["direction"], _cut(setup.section("hrp"))
    return _directed(setup, starts.preheated_until_settled(setup), direction, how=how)


@register("asymmetric-a", "lora_A frozen at PEFT's random start")
def asymmetric_a(setup: Setup) -> Start:
    """Train lora_B alone, which is the setting of `docs/theory.md` T1."""
    model = setup.adapter()
    freeze_factor(model, "A")
    return Start(model)


@register("asymmetric-b", "lora_B frozen at a random start, lora_A = 0")
def asymmetric_b(setup: Setup) -> Start:
    """Train lora_A alone; lora_B is uniform, its columns of expected squared norm 1/3."""
    model = setup.adapter()
    generator = torch.Generator().manual_seed(setup.spec.seed)
    for module in lora_modules(model, "default").values():
        lora_A, lora_B = module.matrices()
        uniform = 2 * torch.rand(lora_B.shape, generator=generator) - 1
        module.write(torch.zeros_like(lora_A), uniform / lora_B.shape[0] ** 0.5)
    freeze_factor(model, "B")
    return Start(model)


for _name, _about, _direction in (
    ("oracle-a", "right singular vectors of full fine-tuning's change", "A"),
    ("oracle-b", "left singular vectors of full fine-tuning's change", "B"),
):
    register(_name, _about, sections=("oracle",))(
        _from(data_starts.full_change, cast(Direction, _direction))
    )
