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
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench import data_starts, starts
from hrp_lab.bench.arm_defaults import adalora_fields
from hrp_lab.bench.context import NotApplicable, Setup, Start
from hrp_lab.bench.costs import Costs

Starter = Callable[[Setup], Start]


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
    start: Starter
    sections: tuple[str, ...] = ()
    charged: bool = False


ARMS: dict[str, Arm] = {}


def register(name: str, about: str, **fields: Any) -> Callable[[Starter], Starter]:
    """Enter a function under ``name``; raise ``ValueError`` where the name is taken."""

    def enter(start: Starter) -> Starter:
        if name in ARMS:
            raise ValueError(f"an arm {name!r} is registered already")
        ARMS[name] = Arm(about, start, **fields)
        return start

    return enter


# --- plain starts, and variants -------------------------------------------------------------


def _lora(**settings: Any) -> Starter:
    return lambda setup: Start(setup.adapter(**settings))


def _peft_start(name: str) -> Starter:
    def start(setup: Setup) -> Start:
        if name == "orthogonal" and setup.rank % 2:
            raise NotApplicable(f"PEFT's orthogonal start needs an even rank, got {setup.rank}")
        return Start(setup.linear_adapter(init_lora_weights=name))

    return start


def _random(direction: Direction) -> Starter:
    def start(setup: Setup) -> Start:
        model = setup.adapter()
        generator = torch.Generator().manual_seed(setup.spec.seed)
        for module in lora_modules(model, "default").values():
            factors = [torch.zeros(factor.shape) for factor in module.matrices()]
            torch.nn.init.orthogonal_(factors["AB".index(direction)], generator=generator)
            module.write(factors[0], factors[1])
        return Start(model)

    return start


def _asymmetric(setup: Setup) -> Start:
    """Train lora_B alone, which is the setting of `docs/theory.md` T1."""
    model = setup.adapter()
    freeze_factor(model, "A")
    return Start(model)


def _asymmetric_b(setup: Setup) -> Start:
    """Train lora_A alone; lora_B is uniform, its columns of expected squared norm 1/3."""
    model = setup.adapter()
    generator = torch.Generator().manual_seed(setup.spec.seed)
    for module in lora_modules(model, "default").values():
        lora_A, lora_B = module.matrices()
        uniform = 2 * torch.rand(lora_B.shape, generator=generator) - 1
        module.write(torch.zeros_like(lora_A), uniform / lora_B.shape[0] ** 0.5)
    freeze_factor(model, "B")
    return Start(model)


def _with_loraplus(starter: Starter) -> Starter:
    """Train lora_B at a higher rate, as Hayou et al. (2024) do."""

    def start(setup: Setup) -> Start:
        made = starter(setup)
        optimizer = create_loraplus_optimizer(
            cast(PeftModel, made.model),
            torch.optim.AdamW,
            lr=setup.spec.learning_rate,
            loraplus_lr_ratio=setup.section("loraplus")["ratio"],
        )
        return dataclasses.replace(made, optimizer=optimizer)

    return start


def _lora_fa(setup: Setup) -> Start:
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


def _adalora(setup: Setup) -> Start:
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


def _full(setup: Setup) -> Start:
    """Train every parameter in float32; bfloat16 weights would round most updates away."""
    model = setup.base(torch.float32).requires_grad_(True)
    extra = sum(p.numel() for p in model.parameters()) - setup.adapter_parameters()
    return Start(model, Costs(extra_parameters=max(extra, 0)), full=True)


# --- starts from a spectrum -----------------------------------------------------------------


def _directed(
    setup: Setup,
    spectrum: Spectrum,
    direction: Direction,
    scale: float = 1.0,
    freeze: bool = False,
    how: Mapping[str, Any] | None = None,
    **variant: Any,
) -> Start:
    """Start a LoRA from a shared spectrum; with ``freeze``, the direction's factor stays."""
    model = setup.adapter(**variant)
    initialize_lora_hrp_weights(model, spectrum, direction, scale, **(how or {}))
    if freeze:
        freeze_factor(model, "A" if direction == "A" else "B")
    made = spectrum.provenance
    return Start(model, Costs(**made["costs"]), tuple(made.get("losses", ())))


def _from(spectrum: Callable[[Setup], Spectrum], direction: Direction) -> Starter:
    return lambda setup: _directed(setup, spectrum(setup), direction)


def _hrp(direction: Direction, freeze: bool = False, kept: bool = False, **fixed: Any) -> Starter:
    """Start from a preheated spectrum; with ``kept`` DoRA is preheated as DoRA."""

    def start(setup: Setup) -> Start:
        section = setup.section("hrp")
        scale = 1.0 if direction == "AB" else section["scale"]
        how = _cut(section) | {name: fixed[name] for name in _CUT if name in fixed}
        variant = {k: fixed[k] for k in ("use_dora", "use_rslora") if k in fixed}
        spectrum = starts.preheated(setup, use_dora=kept and "truncation" in section)
        return _directed(setup, spectrum, direction, scale, freeze, how, **variant)

    return start


_CUT: Mapping[str, Any] = {"truncation": "frobenius", "keep": False}


def _cut(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the update is cut; a section that does not say so has the plain cut of old.

    See `hrp_lab.bench.comparisons.superseded`: an old experiment plans and does what it did.
    """
    return {name: section.get(name, old) for name, old in _CUT.items()}


def _random_ab(setup: Setup) -> Start:
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


def _hrp_auto(setup: Setup) -> Start:
    """Preheat until the subspaces settle; charge the steps that this took."""
    direction, how = setup.section("auto")["direction"], _cut(setup.section("hrp"))
    return _directed(setup, starts.preheated_until_settled(setup), direction, how=how)


# --- all of them: those that are not charged, those that are --------------------------------

_sections: tuple[str, ...]
for _name, _about, _sections, _start in (
    ("lora", "PEFT's default: Kaiming lora_A, lora_B = 0", (), _lora()),  # the control
    ("rslora", "scaling alpha / sqrt(r)", (), _lora(use_rslora=True)),
    ("dora", "weight-decomposed LoRA", (), _lora(use_dora=True)),
    ("gaussian", "Gaussian lora_A, lora_B = 0", (), _peft_start("gaussian")),
    ("pissa", "leading singular triples of the weight (PiSSA)", (), _peft_start("pissa")),
    ("olora", "QR of the weight (OLoRA)", (), _peft_start("olora")),
    ("mica", "trailing left singular vectors of the weight, lora_B frozen (MiCA)", (),
     _peft_start("mica")),
    ("orthogonal", "orthogonal lora_A and lora_B, product 0", (), _peft_start("orthogonal")),
    ("random-a", "random orthonormal rows in lora_A, lora_B = 0", (), _random("A")),
    ("random-b", "random orthonormal columns in lora_B, lora_A = 0", (), _random("B")),
    ("asymmetric-a", "lora_A frozen at PEFT's random start", (), _asymmetric),
    ("asymmetric-b", "lora_B frozen at a random start, lora_A = 0", (), _asymmetric_b),
    ("lora+", "a higher learning rate for lora_B", ("loraplus",), _with_loraplus(_lora())),
    ("lora-fa", "lora_A frozen at random, gradient of lora_B corrected", (), _lora_fa),
    ("adalora", "ranks allocated by importance", ("adalora",), _adalora),
    ("full", "full fine-tuning, in float32", (), _full),
    ("squeeze", "LoRA-Squeeze: a high rank for all steps, then the cut", ("squeeze",),
     starts.squeezed_after),
    ("oracle-a", "right singular vectors of full fine-tuning's change", ("oracle",),
     _from(data_starts.full_change, "A")),
    ("oracle-b", "left singular vectors of full fine-tuning's change", ("oracle",),
     _from(data_starts.full_change, "B")),
):  # fmt: skip
    register(_name, _about, sections=_sections)(_start)

for _name, _about, _sections, _start in (
    ("eva", "leading directions of the activations", ("eva",), data_starts.eva),
    ("corda", "weight times covariance of the activations", ("covariance",), data_starts.corda),
    ("lora_ga", "singular vectors of the gradient, the base changed", ("gradient",),
     data_starts.lora_ga),
    ("gradient-svd", "singular vectors of the mean gradient, direction A (as in LoRA-One)",
     ("gradient",), _from(data_starts.gradient, "A")),
    ("gradient-svd-b", "singular vectors of the mean gradient, direction B (as in LoRA-One)",
     ("gradient",), _from(data_starts.gradient, "B")),
    ("hrp-a", "preheated right singular vectors in lora_A", ("hrp",), _hrp("A")),
    ("hrp-b", "preheated left singular vectors in lora_B", ("hrp",), _hrp("B")),
    ("hrp-ab", "the preheated update, cut in the metric of the loss", ("hrp",), _hrp("AB")),
    ("hrp-ab-frobenius", "the preheated update, cut by the plain SVD", ("hrp",),
     _hrp("AB", truncation="frobenius")),
    ("dora-hrp-ab", "DoRA, preheated as DoRA, magnitudes kept", ("hrp",),
     _hrp("AB", kept=True, use_dora=True)),
    ("dora-hrp-ab-reset", "DoRA, preheated as LoRA, magnitudes as they follow", ("hrp",),
     _hrp("AB", use_dora=True)),
    ("rslora-hrp-ab", "rsLoRA, started as hrp-ab", ("hrp",), _hrp("AB", use_rslora=True)),
    ("lora+-hrp-ab", "LoRA+, started as hrp-ab", ("hrp", "loraplus"),
     _with_loraplus(_hrp("AB"))),
    ("random-ab", "random directions with the singular values of hrp-ab", ("hrp",), _random_ab),
    ("asymmetric-hrp-a", "as hrp-a, lora_A frozen", ("hrp",), _hrp("A", freeze=True)),
    ("asymmetric-hrp-b", "as hrp-b, lora_B frozen", ("hrp",), _hrp("B", freeze=True)),
    ("squeeze-tail", "LoRA-Squeeze with its last steps at the low rank", ("squeeze",),
     starts.squeezed_with_tail),
    ("hrp-auto", "HRP that stops preheating once the subspaces settle", ("hrp", "auto"),
     _hrp_auto),
):  # fmt: skip
    register(_name, _about, sections=_sections, charged=True)(_start)
