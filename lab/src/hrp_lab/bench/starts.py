"""Make starts from the data: preheating, gradients, covariances, full fine-tuning's change.

Preheating is charged its steps; passes for gradients, covariances or activations are charged the
fine-tuning steps that cost as many FLOPs; an oracle is charged nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from peft import EvaConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.eva import prepare_layer_inputs_fn_language_modeling
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn

from hrp.adapters.layers import lora_modules
from hrp.adapters.reading import read_spectrum
from hrp.config import HRPConfig
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.pipeline import preheat
from hrp.preheating.rates import rates_of
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench import costs
from hrp_lab.bench.context import NotApplicable, Setup, Start
from hrp_lab.bench.costs import Costs, equivalent_steps
from hrp_lab.bench.spectrum_cache import Shared
from hrp_lab.bench.tasks.answers import IGNORED, half_precision
from hrp_lab.bench.training import trainer_arguments

PREHEAT_SEED = 1000  # added to a run's seed: other batches than fine-tuning's first ones
_OF_THE_START = ("scale", "truncation", "keep")  # settings that preheating does not depend on
_KEPT_RANKS = 4  # times the adapter's rank, of each spectrum that is kept


def preheated(setup: Setup, use_dora: bool = False) -> Shared:
    """Return the spectrum of HRP's preheating by the experiment's section ``hrp``."""
    settings = _preheating(setup)
    if use_dora:
        # Magnitudes are trained at fine-tuning's own rate.
        settings |= {"use_dora": True, "own_learning_rate": setup.spec.learning_rate}
    return setup.shared("preheat", settings, lambda: _preheat(setup, settings))


def preheated_as_dora(setup: Setup) -> Shared:
    """Return the spectrum of preheating an adapter with DoRA, its magnitudes kept."""
    return preheated(setup, use_dora=True)


def preheated_until_settled(setup: Setup) -> Shared:
    """Do the same with ``preheat_steps="auto"``, for at most ``max_share`` of all steps."""
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


def _preheat(setup: Setup, settings: dict[str, Any], watched: Any = None) -> Shared:
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
            trainer_cls = plan.speed.trainer_cls
            trainer_cls = watched(trainer_cls) if watched else trainer_cls
            spectrum = preheat(model, config, trainer_cls=trainer_cls, **kwargs)
        accumulated = kwargs["args"].gradient_accumulation_steps
    steps = int(spectrum.provenance["steps"])
    tokens = collator.tokens(steps * accumulated)
    held = setup.adapter_parameters(config.preheat_rank)
    trained = held if config.train_factors == "both" else held // 2
    flops = costs.lora_flops(setup.size, tokens, held, trained) + sum(
        costs.factored_svd_flops(*shape, min(config.preheat_rank, *shape))
        for shape in setup.targets.values()
    )
    used = Costs(
        preheat_steps=steps,
        charged_steps=steps,
        tokens=tokens,
        flops=flops,
        wall_s=time.perf_counter() - began,
        peak_memory_bytes=peak_memory(),
        extra_parameters=held,
    )
    return Shared(spectrum, used, tuple(spectrum.provenance["losses"]))


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
    trained = setup.train(Start(model), steps, rate)
    held = setup.adapter_parameters(section["rank"])
    used = Costs(
        preheat_steps=steps,
        charged_steps=steps,
        tokens=trained.tokens,
        flops=costs.lora_flops(setup.size, trained.tokens, held),
        wall_s=trained.wall_s,
        peak_memory_bytes=peak_memory(),
        extra_parameters=held,
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


def peak_memory() -> int:
    """Return the largest memory allocated since the last reset, in bytes; 0 on the CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def gradient(setup: Setup) -> Shared:
    """Return the spectrum of the loss's mean gradient with respect to the adapted weights."""
    settings = setup.section("gradient")
    return setup.shared("gradient", settings, lambda: _mean_gradient(setup, settings["batches"]))


def _mean_gradient(setup: Setup, batches: int) -> Shared:
    began = time.perf_counter()
    model = setup.base(torch.float32).requires_grad_(False).train()
    weights = {name: model.get_submodule(name).weight for name in setup.targets}
    for weight in weights.values():
        weight.requires_grad_(True)
    tokens = _accumulate_gradients(setup, model, batches)
    spectrum = _dense_spectrum(setup, {n: w.grad / batches for n, w in weights.items()})
    flops = costs.gradient_flops(setup.size, tokens, setup.target_parameters) + _svd_flops(setup)
    return Shared(spectrum, _gradients_held(setup, _passes(setup, tokens, flops, began)))


def _gradients_held(setup: Setup, used: Costs) -> Costs:
    """Count the adapted weights as trainable, which gradients make them for a while."""
    return dataclasses.replace(used, extra_parameters=setup.target_parameters)


def _accumulate_gradients(setup: Setup, model: nn.Module, batches: int) -> int:
    """Add up the gradients of ``batches`` batches; return their tokens."""
    tokens = 0
    for batch in setup.batches(batches):
        with half_precision(setup.bench.device):
            loss = model(**batch).loss
        loss.backward()
        tokens += int(batch["attention_mask"].sum())
    return tokens


def _svd_flops(setup: Setup) -> float:
    return sum(costs.svd_flops(*shape) for shape in setup.targets.values())


def _passes(setup: Setup, tokens: int, flops: float, began: float) -> Costs:
    """Return the costs of passes over data, charged the steps that cost as many FLOPs."""
    return Costs(
        charged_steps=equivalent_steps(flops, setup.step_flops),
        tokens=tokens,
        flops=flops,
        wall_s=time.perf_counter() - began,
        peak_memory_bytes=peak_memory(),
    )


def _dense_spectrum(setup: Setup, changes: Mapping[str, Float[Tensor, "d_out d_in"]]) -> Spectrum:
    """Return the leading singular triples of dense matrices, by module."""
    kept = _KEPT_RANKS * setup.rank
    spectra = {}
    for name, change in changes.items():
        U, S, Vh = torch.linalg.svd(change.float(), full_matrices=False)
        leading = [part.contiguous().cpu() for part in (U[:, :kept], S[:kept], Vh[:kept])]
        spectra[name] = ModuleSpectrum(leading[0], leading[1], leading[2], scaling=1.0)
    return Spectrum(spectra)


def full_change(setup: Setup) -> Shared:
    """Return the spectrum of what full fine-tuning changes in the adapted weights, uncharged."""
    settings = setup.section("oracle")
    settings.setdefault("steps", setup.spec.config["steps"])
    return setup.shared("oracle", settings, lambda: _full_change(setup, settings))


def _full_change(setup: Setup, settings: dict[str, Any]) -> Shared:
    model = setup.base(torch.float32).requires_grad_(True)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in setup.targets}
    setup.train(Start(model, full=True), settings["steps"], settings["learning_rate"])
    after = {name: model.get_submodule(name).weight.detach() for name in setup.targets}
    return Shared(_dense_spectrum(setup, {n: after[n] - before[n] for n in after}), Costs())


def lora_ga(setup: Setup) -> Start:
    """Start by PEFT's LoRA-GA (Wang et al. 2024).

    The base is float32, because bfloat16 would round the sum of gradients.
    """
    began, batches = time.perf_counter(), setup.section("gradient")["batches"]
    base = setup.base(torch.float32)
    config = setup.lora_config(
        target_modules=sorted(setup.targets), init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )  # fmt: skip
    tokens = []
    preprocess_loraga(
        base, config, lambda: tokens.append(_accumulate_gradients(setup, base, batches))
    )
    for name in setup.targets:
        if not hasattr(base.get_submodule(name), "_peft_loraga_grad"):
            raise NotApplicable(f"module {name!r} gets no gradient, which PEFT's LoRA-GA needs")
    model = setup.linear_adapter(
        base, init_lora_weights="lora_ga", lora_ga_config=config.lora_ga_config
    )
    flops = costs.gradient_flops(setup.size, tokens[0], setup.target_parameters)
    used = _passes(setup, tokens[0], flops + _svd_flops(setup), began)
    return Start(model, _gradients_held(setup, used))


def corda(setup: Setup) -> Start:
    """Start by PEFT's CorDA (Yang et al. 2024) in its instruction-previewed mode.

    Rows go through the model one at a time, as PEFT's hook expects.
    """
    try:
        from peft.tuners.lora.corda import preprocess_corda
    except ModuleNotFoundError as error:  # PEFT does not depend on attrs, but its CorDA needs it
        raise NotApplicable(
            f"PEFT's CorDA cannot be imported: {error}; pip install attrs"
        ) from error
    began, rows = time.perf_counter(), setup.section("covariance")["rows"]
    base = setup.base()
    config = setup.lora_config(
        target_modules=sorted(setup.targets), init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )  # fmt: skip
    tokens = 0

    def run_model() -> None:
        nonlocal tokens
        for batch in setup.batches(rows, batch_size=1):
            with half_precision(setup.bench.device):
                base(**batch)
            tokens += int(batch["attention_mask"].sum())

    preprocess_corda(base, config, run_model=run_model)
    model = setup.linear_adapter(base, init_lora_weights="corda", corda_config=config.corda_config)
    widths = [d_in for _, d_in in setup.targets.values()]
    flops = costs.covariance_flops(setup.size, tokens, widths) + _svd_flops(setup)
    return Start(model, _passes(setup, tokens, flops, began))


class _Limited:
    """Limits EVA's batches, over which it would cycle without end where it cannot converge."""

    def __init__(self, setup: Setup, limit: int) -> None:
        self._setup, self._limit = setup, limit
        self._given: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self._limit

    @property
    def tokens(self) -> int:
        """Count the tokens in the batches used."""
        return sum(int(batch["attention_mask"].sum()) for batch in self._given)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._setup.batches(self._limit):
            self._given.append(batch)
            yield batch
        raise NotApplicable(f"EVA has not converged after {self._limit} batches")


def _layer_inputs(inputs: Any, positions: Any, layer: str) -> Tensor:
    """Return PEFT's choice of tokens, or all rows of a layer that sees one vector an example."""
    tensor = inputs if isinstance(inputs, Tensor) else inputs[0]
    if tensor.dim() == 2:
        return tensor
    chosen: Tensor = prepare_layer_inputs_fn_language_modeling(inputs, positions, layer)
    return chosen


def eva(setup: Setup) -> Start:
    """Start by PEFT's EVA (Paischer et al. 2024), which redistributes ranks within the budget."""
    if setup.task.task_type == "SEQ_2_SEQ_LM":
        raise NotApplicable(
            "PEFT's EVA picks the tokens of every layer by the encoder's mask, which does not fit "
            "a decoder's layers"
        )
    began, settings = time.perf_counter(), setup.section("eva")
    config = EvaConfig(
        rho=settings["rho"], tau=settings["tau"], label_mask_value=IGNORED,
        use_label_mask=setup.task.task_type == "CAUSAL_LM",
    )  # fmt: skip
    model = setup.linear_adapter(init_lora_weights="eva", eva_config=config)
    loader = _Limited(setup, settings["max_batches"])
    # Autocast stays off: it would run EVA's incremental SVD in bfloat16 too.
    initialize_lora_eva_weights(
        model, loader, prepare_layer_inputs_fn=_layer_inputs, show_progress_bar=False
    )
    # PEFT makes the factors of modules with a new rank in the base's dtype; all arms train float32.
    cast_adapter_dtype(model, "default")
    flops = costs.forward_flops(setup.size, loader.tokens)
    return Start(model, _passes(setup, loader.tokens, flops, began))
