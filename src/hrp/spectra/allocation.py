"""Chooses ranks with which a budget of parameters keeps the most energy.

Pure functions on singular values; `hrp.adapters.patterns` makes PEFT's patterns of the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from hrp.spectra.spectrum import Spectrum

Ranks = dict[str, int]


def parameter_count(spectrum: Spectrum, ranks: Mapping[str, int]) -> int:
    """Count the parameters of LoRAs of these ranks: the sum of ``rank * (d_out + d_in)``."""
    return sum(rank * sum(spectrum[name].shape) for name, rank in ranks.items())


def kept_energy(spectrum: Spectrum, ranks: Mapping[str, int]) -> float:
    """Return the share of all squared singular values that the leading ``ranks`` hold.

    Raises:
        ValueError: the spectrum holds no energy at all.
    """
    total = sum(float(module.S.double().square().sum()) for module in spectrum.values())
    if total == 0:
        raise ValueError("a kept share needs a positive singular value, got none")
    leading = (spectrum[name].S[:rank].double().square().sum() for name, rank in ranks.items())
    return float(sum(leading)) / total


def uniform_ranks(spectrum: Spectrum, rank: int) -> Ranks:
    """Give every module ``rank``, or all that it has if that is less."""
    return {name: min(rank, module.rank) for name, module in spectrum.items()}


def energy_ranks(spectrum: Spectrum, budget: int) -> Ranks:
    """Return ranks, at least 1 a module, that keep the most energy within ``budget`` parameters.

    Takes singular triples one by one, the most squared singular value per parameter first
    (``S_i^2 / (d_out + d_in)``, descending within a module, so what is taken is always leading).
    Exact where all modules cost the same per rank. Elsewhere this is the knapsack problem, and
    the kept energy is short of the best by less than the one triple that did not fit any more.

    Raises:
        ValueError: ``budget`` does not pay for rank 1 everywhere.
    """
    ranks = dict.fromkeys(spectrum, 1)
    left = budget - parameter_count(spectrum, ranks)
    if left < 0:
        raise ValueError(
            f"`rank_budget` must be at least {budget - left} parameters, which is rank 1 on each "
            f"of {len(spectrum)} modules, got {budget}"
        )
    triples = sorted(
        (-value / sum(module.shape), name)
        for name, module in spectrum.items()
        for value in module.S[1:].double().square().tolist()
        if value > 0
    )
    for _, name in triples:
        cost = sum(spectrum[name].shape)
        if cost <= left:  # else a cheaper module's next direction may still fit
            left -= cost
            ranks[name] += 1
    return ranks
