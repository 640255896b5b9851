"""Tries around the kept start, each a setting of one arm; they go when the log has their verdicts.

- newton, drift: the core that is cut is ``diag(S) + newton * N + drift * D``, where N is a step of
  Newton's method in the Kronecker-factored metric, from the cross moment ``E[g z^T]``, and D is
  what the second half of preheating has changed.
- moments: Adam's moments of preheating, projected on the start, are fine-tuning's first ones.
- optimizer: "riemannian" preheats by PEFT's preconditioned optimizer.
- frozen_magnitude: DoRA's magnitudes stay while preheating.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from peft.optimizers import create_riemannian_optimizer
from torch import Tensor
from transformers import TrainerCallback

from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.moments import Moments
from hrp.adapters.reading import read_spectrum
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating import pipeline
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp.spectra.truncation import DAMPING, _metric_factors
from hrp_lab.bench import starts
from hrp_lab.bench.context import Setup, Start
from hrp_lab.bench.spectrum_cache import Shared

_OF_THE_CUT = ("newton", "drift")


def tried(setup: Setup) -> Start:
    """Start an adapter from a spectrum that was preheated and cut as section ``tries`` says."""
    tries, section = setup.section("tries"), setup.section("hrp")
    shared = tried_preheating(setup)
    model = setup.adapter(use_dora=tries["use_dora"])
    kept = {k: v for k, v in shared.spectrum.kept.items() if not k.startswith("try.")}
    extra = {k: v for k, v in shared.spectrum.kept.items() if k.startswith("try.")}
    spectrum, truncation = Spectrum(shared.spectrum, shared.spectrum.provenance, kept), "loss"
    if tries["newton"] or tries["drift"]:
        cut = {
            name: _cut(module, setup.rank, _target(module, name, extra, tries))
            for name, module in spectrum.items()
        }
        spectrum, truncation = Spectrum(cut, spectrum.provenance, kept), "frobenius"
    initialize_lora_hrp_weights(model, spectrum, "AB", truncation=truncation, keep=section["keep"])
    callbacks = ()
    if tries["moments"]:
        callbacks = (_CarriedMoments(model, extra),)
    return Start(model, shared.costs, shared.losses, callbacks=callbacks)


def tried_preheating(setup: Setup) -> Shared:
    """Return the spectrum that the try starts from, preheated or read from the cache."""
    tries = {k: v for k, v in setup.section("tries").items() if k not in _OF_THE_CUT}
    settings = starts._preheating(setup)
    if tries["use_dora"]:
        settings |= {"own_learning_rate": setup.spec.learning_rate}
    settings |= {"use_dora": tries.pop("use_dora"), "tries": tries}

    def make() -> Shared:
        with _watched(tries) as trainer_cls:
            plain = {k: v for k, v in settings.items() if k != "tries"}
            return starts._preheat(setup, plain, trainer_cls)

    return setup.shared("try", settings, make)


def _target(module: ModuleSpectrum, name: str, extra: dict[str, Tensor], tries: Any) -> Tensor:
    core = module.S.double().diag()
    for part in _OF_THE_CUT:
        core = core + tries[part] * extra[f"try.{part}.{name}"].double()
    return core


def _cut(module: ModuleSpectrum, rank: int, core: Tensor) -> ModuleSpectrum:
    L_u, L_v = _metric_factors(module.S, module.left_metric, module.right_metric, DAMPING)
    X, values, Yh = torch.linalg.svd(L_u.mT @ core @ L_v, full_matrices=False)
    roots = values[:rank].sqrt()
    P = torch.linalg.solve_triangular(L_u.mT, X[:, :rank] * roots, upper=True)
    Q = torch.linalg.solve_triangular(L_v, roots[:, None] * Yh[:rank], upper=False, left=False)
    return module.with_core(P, Q)


class _CrossMoments(Moments):
    def __init__(self, modules: dict[str, LoraModule]) -> None:
        super().__init__(modules)
        self.cross: dict[str, Tensor] = {}

    def add(self, name: str, z: Tensor, g: Tensor) -> None:
        super().add(name, z, g)
        z, g = self._modules[name].rows(z).float(), self._modules[name].rows(g).float()
        with torch.autocast(z.device.type, enabled=False):
            self.cross[name] = self.cross.get(name, 0.0) + g.T @ z


@contextmanager
def _watched(tries: dict[str, Any]) -> Iterator[Any]:
    """Give a factory of trainer classes; within, preheating keeps what the tries need."""
    seen: dict[str, Any] = {}

    def make_moments(modules: dict[str, LoraModule]) -> Moments:
        seen["modules"], seen["moments"] = modules, _CrossMoments(modules)
        return seen["moments"]

    def read(modules: dict[str, LoraModule], moments: Moments) -> Spectrum:
        seen["spectrum"] = read_spectrum(modules, moments)
        return seen["spectrum"]

    def keep(model: Any, modules: dict[str, LoraModule]) -> dict[str, Tensor]:
        kept = read_kept(model, modules)
        for name, module in seen["spectrum"].items():
            kept |= _cores(name, module, modules[name], seen)
            if tries["moments"]:
                kept |= _adam(name, modules[name], seen)
        return {k: v.contiguous().cpu() for k, v in kept.items()}

    read_kept = pipeline.read_kept

    def trainer_cls(base: Any) -> Any:
        class TriedTrainer(base):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.add_callback(_Halfway(seen))

            def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
                if tries["frozen_magnitude"]:
                    for name, parameter in self.model.named_parameters():
                        if "lora_magnitude_vector" in name:
                            parameter.requires_grad_(False)
                if tries["optimizer"] == "riemannian":
                    self.optimizer = create_riemannian_optimizer(
                        self.model, torch.optim.AdamW, lr=self.args.learning_rate, weight_decay=0.0
                    )
                seen["optimizer"] = super().create_optimizer(*args, **kwargs)
                return seen["optimizer"]

        return TriedTrainer

    with (
        mock.patch.object(pipeline, "Moments", make_moments),
        mock.patch.object(pipeline, "read_spectrum", read),
        mock.patch.object(pipeline, "read_kept", keep),
    ):
        yield trainer_cls


class _Halfway(TrainerCallback):
    def __init__(self, seen: dict[str, Any]) -> None:
        self._seen = seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == state.max_steps // 2:
            self._seen["half"] = {
                name: [factor.detach().clone() for factor in module.matrices()]
                for name, module in self._seen["modules"].items()
            }


def _cores(
    name: str, spectrum: ModuleSpectrum, module: LoraModule, seen: dict[str, Any]
) -> dict[str, Tensor]:
    lora_A, lora_B = (factor.detach().double().cpu() for factor in module.matrices())
    half_A, half_B = (factor.double().cpu() for factor in seen["half"][name])
    U, S, Vh = spectrum.U.double(), spectrum.S.double(), spectrum.Vh.double()
    half = U.mT @ half_B @ half_A @ Vh.mT * module.scaling
    sums, cross = seen["moments"].total(name), seen["moments"].cross[name].double().cpu()
    to_u = torch.linalg.pinv((U.mT @ lora_B).mT) / module.scaling
    to_v = torch.linalg.pinv(lora_A @ Vh.mT)
    weights = S / S.sum()
    metrics = []
    for to, moments in ((to_u, sums.gradients), (to_v, sums.inputs)):
        metric = to @ moments.double().cpu() @ to.mT
        metric = (metric + metric.mT) / 2
        mean = (metric.diagonal() * weights).sum()
        metrics.append(metric + DAMPING * mean * torch.eye(len(S), dtype=torch.float64))
    # Sums over n steps of a mean loss: its Fisher matrix is (left / n) x (right / n), the gradient
    # cross / n.
    steps = 8
    gradient = to_u @ cross @ to_v.mT
    newton = -steps * torch.linalg.solve(metrics[0], torch.linalg.solve(metrics[1], gradient.mT).mT)
    return {f"try.newton.{name}": newton.float(), f"try.drift.{name}": (S.diag() - half).float()}


def _adam(name: str, module: LoraModule, seen: dict[str, Any]) -> dict[str, Tensor]:
    kept = {}
    optimizer = seen["optimizer"]
    for side, factor in zip("AB", _parameters(module), strict=True):
        state = optimizer.state[factor]
        kept[f"try.{side}.{name}"] = factor.detach().float()
        for moment in ("exp_avg", "exp_avg_sq"):
            kept[f"try.{moment}.{side}.{name}"] = state[moment].float()
        kept["try.step"] = torch.as_tensor(float(state["step"]))
    return kept


def _parameters(module: LoraModule) -> tuple[Tensor, Tensor]:
    return tuple(module.parameters())


class _CarriedMoments(TrainerCallback):
    """Project preheating's moments on the start: B' = B X and A' = Y A, so dL/dA' = X^T dL/dA."""

    def __init__(self, model: Any, extra: dict[str, Tensor]) -> None:
        self._model, self._extra = model, extra

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        device = next(self._model.parameters()).device
        extra = {k: v.to(device) for k, v in self._extra.items()}
        for name, module in lora_modules(self._model, "default").items():
            lora_A, lora_B = _parameters(module)
            A, B = extra[f"try.A.{name}"], extra[f"try.B.{name}"]
            X = torch.linalg.pinv(B) @ lora_B.detach()
            Y = lora_A.detach() @ torch.linalg.pinv(A)
            for factor, side, left, right in ((lora_A, "A", X.mT, None), (lora_B, "B", None, Y.mT)):
                new = {"step": extra["try.step"].clone()}
                for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
                    value = extra[f"try.{moment}.{side}.{name}"]
                    value = left**power @ value if left is not None else value @ right**power
                    new[moment] = value.to(factor.dtype)
                optimizer.state[factor] = new
