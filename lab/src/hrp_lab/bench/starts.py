"""Make starts from training at a high rank: preheating, charged its steps, and LoRA-Squeeze."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from peft import PeftModel
from torch import nn

from hrp.adapters.layers import lora_modules
from hrp.adapters.reading import read_spectrum
from hrp.config import HRPConfig
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.pipeline import preheat
from hrp.preheating.rates import rates_of
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench import costs
from hrp_lab.bench.context import NotApplicable, Setup, Start
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.training import trainer_arguments

PREHEAT_SEED = 1000  # added to a run's seed: other batches than fine-tuning's first ones
_OF_THE_START = ("scale", "truncation", "keep")  # settings that preheating does not depend on


def preheated(setup: Setup, use_dora: bool = False) -> Spectrum:
    """Return the spectrum of preheating by section ``hrp``, of a LoRA or a DoRA."""
    settings = _preheating(setup)
    if use_dora:
        # Magnitudes are trained at fine-tuning's own rate.
        settings |= {"use_dora": True, "own_learning_rate": setup.spec.learning_rate}
    return setup.shared("preheat", settings, lambda: _preheat(setup, settings))


def preheated_until_settled(setup: Setup) -> Spectrum:
    """Return that of ``preheat_steps="auto"``, for at most ``max_share`` of all steps."""
    settings, auto = _preheating(setup), setup.section("auto")
    limit = round(auto.pop("max_share") * setup.spec.config["steps"])
    window = auto.get("subspace_window", HRPConfig.subspace_window)
    if limit < 2 * window:
        raise NotApplicable(
            f"`max_share` allows {limit} preheating steps, and two looks at the subspaces take "
            f"{2 * window}"
        )
    auto.pop("direction")
    settings |= {"preheat_steps": "auto", "max_preheat_steps": limit, **auto}
    return setup.shared("preheat", settings, lambda: _preheat(setup, settings))


def _preheating(setup: Setup) -> dict[str, Any]:
    """Return section ``hrp`` without what concerns the start, steps and rates as numbers.

    ``own_learning_rate`` is that of all that is trained beside the factors.
    """
    settings = {"warmup_share": 0.0} | setup.section("hrp")  # of old there was none
    for name in _OF_THE_START:
        settings.pop(name, None)
    config = HRPConfig(**settings).of_run(setup.spec.config["steps"])
    own = setup.spec.learning_rate
    return settings | {
        "preheat_steps": config.preheat_steps,
        "learning_rate": rates_of(own, config, setup.rank).factors,
        "own_learning_rate": own if setup.lora_config().modules_to_save else None,
    }


def _preheat(setup: Setup, settings: dict[str, Any]) -> tuple[Spectrum, Costs]:
    settings = dict(settings)
    use_dora = settings.pop("use_dora", False)
    settings.pop("own_learning_rate")
    config = HRPConfig(seed=PREHEAT_SEED + setup.spec.seed, **settings)
    model = setup.adapter(use_dora=use_dora)
    plan = setup.plan(config.step_limit, setup.spec.learning_rate)
    # A compiled block would not see the hooks that observe moments.
    plan = dataclasses.replace(plan, speed=dataclasses.replace(plan.speed, torch_compile=False))
    began = time.perf_counter()
    with trainer_arguments(plan) as (kwargs, collator):
        with plan.speed.applied(model, plan.task):
            spectrum = preheat(model, config, trainer_cls=plan.speed.trainer_cls, **kwargs)
        accumulated = kwargs["args"].gradient_accumulation_steps
    steps = int(spectrum.provenance["steps"])
    tokens = collator.tokens(steps * accumulated)
    held = setup.adapter_parameters(config.preheat_rank)
    trained = held if config.train_factors == "both" else held // 2
    flops = costs.lora_flops(setup.size, tokens, held, trained) + sum(
        costs.factored_svd_flops(*shape, min(config.preheat_rank, *shape))
        for shape in setup.targets.values()
    )
    return spectrum, setup.used(
        began, tokens, flops, preheat_steps=steps, charged_steps=steps, extra_parameters=held
    )


def squeezed_after(setup: Setup) -> Start:
    """Train a LoRA of a high rank for all steps and cut it afterwards (LoRA-Squeeze, post hoc)."""
    rank = setup.section("squeeze")["rank"]
    return Start(_high_rank(setup, rank), finish=lambda model: _cut(setup, model))


def squeezed_with_tail(setup: Setup) -> Start:
    """Train a LoRA of a high rank, cut it, and go on at the adapter's rank (LoRA-Squeeze)."""
    section = setup.section("squeeze")
    steps = round((1 - section["tail_share"]) * setup.spec.config["steps"])
    model = _high_rank(setup, section["rank"])
    rate = setup.spec.learning_rate * (setup.rank / section["rank"]) ** 0.5
    began = time.perf_counter()
    tokens = setup.train(Start(model), steps, rate).tokens
    held = setup.adapter_parameters(section["rank"])
    flops = costs.lora_flops(setup.size, tokens, held)
    used = setup.used(
        began, tokens, flops, preheat_steps=steps, charged_steps=steps, extra_parameters=held
    )
    return Start(_cut(setup, model), used)


def _high_rank(setup: Setup, rank: int) -> PeftModel:
    """Put a LoRA of another rank, with the experiment's scaling, on a fresh base."""
    plain = setup.lora_config()
    return setup.adapter(r=rank, lora_alpha=plain.lora_alpha * rank / plain.r)


def _cut(setup: Setup, model: nn.Module) -> PeftModel:
    """Return an adapter of the experiment's rank that holds the plain SVD of the trained one."""
    spectrum = read_spectrum(lora_modules(model, "default"))
    adapter = setup.adapter()
    initialize_lora_hrp_weights(adapter, spectrum, "AB", truncation="frobenius")
    return adapter
