"""Judges what preheating has come to: a start made of a ruined model would ruin fine-tuning."""

from __future__ import annotations

import warnings
from statistics import mean, median

from hrp.errors import PreheatingError
from hrp.preheating.plan import Plan
from hrp.spectra.spectrum import Spectrum

_ENDS = 0.1  # share of the steps that are averaged at either end
_FEW = 10  # steps under which the two ends say nothing
_DESTROYED_LOSS = 2.0  # times the loss at the beginning
_DESTROYED_UPDATE = 1.0  # singular value over the norm of the base weight


def check_outcome(plan: Plan, losses: list[float], spectrum: Spectrum) -> None:
    """Refuse a preheating that has plainly ruined the model, and warn of one that made it worse.

    It is ruined where the loss at the end is not below that at the beginning and the updates are
    larger than the weights that they change, or where the loss has doubled.

    Raises:
        PreheatingError: the model was ruined.

    Warns:
        UserWarning: the mean loss at the end is above that at the beginning.
    """
    if len(losses) < _FEW:
        return
    width = max(1, round(_ENDS * len(losses)))
    first, last = mean(losses[:width]), mean(losses[-width:])
    if last < first:
        return
    said = f"the loss was {first:.4g} at the beginning of preheating and {last:.4g} at its end"
    if last > _DESTROYED_LOSS * first or _relative_size(plan, spectrum) > _DESTROYED_UPDATE:
        raise PreheatingError(
            f"{said}, so that the model is ruined; lower `learning_rate` of the HRPConfig (it was "
            f"{plan.rates.factors:g})"
        )
    warnings.warn(
        f"{said}; lower `learning_rate` of the HRPConfig (it was {plan.rates.factors:g}), or "
        "preheat longer",
        stacklevel=3,
    )


def _relative_size(plan: Plan, spectrum: Spectrum) -> float:
    """Return the median of the update's largest singular value over the base weight's norm."""
    sizes = []
    for name, module in plan.modules.items():
        norm = module.base_norm()
        if norm and name in spectrum:
            sizes.append(float(spectrum[name].S[0]) / norm)
    return median(sizes) if sizes else 0.0
