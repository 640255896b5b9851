"""Make starts from the data: gradients, covariances, activations, full fine-tuning's change.

Passes over data are charged the fine-tuning steps that cost as many FLOPs; an oracle is charged
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from peft import EvaConfig, LoraGAConfig, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import prepare_layer_inputs_fn_language_modeling
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn

from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench import costs
from hrp_lab.bench.context import NotApplicable, Setup, Start
from hrp_lab.bench.costs import Costs, equivalent_steps
from hrp_lab.bench.tasks.answers import IGNORED, half_precision

_KEPT_RANKS = 4  # times the adapter's rank, of each spectrum that is kept


def gradient(setup: Setup) -> Spectrum:
    """Return the spectrum of the loss's mean gradient with respect to the adapted weights."""
    settings = setup.section("gradient")
    batches = settings["batches"]

    def make() -> tuple[Spectrum, Costs]:
        began = time.perf_counter()
        model = setup.base(torch.float32).requires_grad_(False).train()
        weights = {name: model.get_submodule(name).weight for name in setup.targets}
        for weight in weights.values():
            weight.requires_grad_(True)
        tokens = _accumulate_gradients(setup, model, batches)
        spectrum = _dense_spectrum(setup, {n: w.grad / batches for n, w in weights.items()})
        return spectrum, _costs_of_gradients(setup, began, tokens)

    return setup.shared("gradient", settings, make)


def _accumulate_gradients(setup: Setup, model: nn.Module, batches: int) -> int:
    """Add up the gradients of ``batches`` batches; return their tokens."""
    tokens = 0
    for batch in setup.batches(batches):
        with half_precision(setup.bench.device):
            loss = model(**batch).loss
        loss.backward()
        tokens += int(batch["attention_mask"].sum())
    return tokens


def _costs_of_gradients(setup: Setup, began: float, tokens: int) -> Costs:
    """Count the adapted weights as trainable, which gradients make them for a while."""
    adapted = sum(d_out * d_in for d_out, d_in in setup.targets.values())
    flops = costs.gradient_flops(setup.size, tokens, adapted) + _svd_flops(setup)
    return _charged(setup, began, tokens, flops, extra_parameters=adapted)


def _svd_flops(setup: Setup) -> float:
    return sum(costs.svd_flops(*shape) for shape in setup.targets.values())


def _charged(setup: Setup, began: float, tokens: int, flops: float, **more: Any) -> Costs:
    """Charge passes over data the steps that cost as many FLOPs."""
    charged = equivalent_steps(flops, setup.step_flops)
    return setup.used(began, tokens, flops, charged_steps=charged, **more)


def _dense_spectrum(setup: Setup, changes: Mapping[str, Float[Tensor, "d_out d_in"]]) -> Spectrum:
    """Return the leading singular triples of dense matrices, by module."""
    kept = _KEPT_RANKS * setup.rank
    spectra = {}
    for name, change in changes.items():
        U, S, Vh = torch.linalg.svd(change.float(), full_matrices=False)
        leading = [part.contiguous().cpu() for part in (U[:, :kept], S[:kept], Vh[:kept])]
        spectra[name] = ModuleSpectrum(leading[0], leading[1], leading[2], scaling=1.0)
    return Spectrum(spectra)


def full_change(setup: Setup) -> Spectrum:
    """Return the spectrum of what full fine-tuning changes in the adapted weights, uncharged."""
    settings = {"steps": setup.spec.config["steps"]} | setup.section("oracle")

    def make() -> tuple[Spectrum, Costs]:
        model = setup.base(torch.float32).requires_grad_(True)
        weights = {name: model.get_submodule(name).weight for name in setup.targets}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        setup.train(Start(model, full=True), settings["steps"], settings["learning_rate"])
        changes = {name: weight.detach() - before[name] for name, weight in weights.items()}
        return _dense_spectrum(setup, changes), Costs()

    return setup.shared("oracle", settings, make)


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
    return Start(model, _costs_of_gradients(setup, began, tokens[0]))


def corda(setup: Setup) -> Start:
    """Start by PEFT's CorDA (Yang et al. 2024) in its instruction-previewed mode.

    Rows go through the model one at a time, as PEFT's hook expects.
    """
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
    return Start(model, _charged(setup, began, tokens, flops))


class _Limited:
    """Limits EVA's batches, over which it would cycle without end where it cannot converge."""

    def __init__(self, setup: Setup, limit: int) -> None:
        self._setup, self._limit = setup, limit
        self.tokens = 0

    def __len__(self) -> int:
        return self._limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._setup.batches(self._limit):
            self.tokens += int(batch["attention_mask"].sum())
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
    return Start(model, _charged(setup, began, loader.tokens, flops))
