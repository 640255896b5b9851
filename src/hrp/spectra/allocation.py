"""Ranks from the spectrum: where a budget of parameters keeps the most energy.

Pure functions on singular values; what they return goes into PEFT's ``rank_pattern`` and
``alpha_pattern``.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from hrp.spectrum import Spectrum

Ranks = dict[str, int]
Value = TypeVar("Value")


def parameter_count(spectrum: Spectrum, ranks: Mapping[str, int]) -> int:
    """Parameters of LoRA adapters of these ranks: the sum of ``rank * (d_out + d_in)``."""
    return sum(rank * sum(spectrum[name].shape) for name, rank in ranks.items())


def kept_energy(spectrum: Spectrum, ranks: Mapping[str, int]) -> float:
    """Share of the sum of all squared singular values that the leading ``ranks`` hold, in [0, 1].

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
    """Ranks, at least 1 a module, that keep the most energy within ``budget`` parameters.

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
    values = {name: module.S.double().square().tolist() for name, module in spectrum.items()}
    costs = {name: sum(module.shape) for name, module in spectrum.items()}
    queue = [_next_triple(name, 1, values, costs) for name in spectrum]
    heapq.heapify(queue)
    while queue:
        gain, name = heapq.heappop(queue)
        if gain == 0:
            break  # a module that is used up, or directions that hold nothing
        if costs[name] > left:
            continue  # a cheaper module's next direction may still fit
        left -= costs[name]
        ranks[name] += 1
        heapq.heappush(queue, _next_triple(name, ranks[name], values, costs))
    return ranks


def _next_triple(
    name: str, taken: int, values: dict[str, list[float]], costs: dict[str, int]
) -> tuple[float, str]:
    """Queue entry (minus the energy per parameter, name) of a module's next direction."""
    remaining = values[name][taken : taken + 1]
    return (-remaining[0] / costs[name] if remaining else 0.0), name


def lora_fields(
    ranks: Mapping[str, int], scaling: float, use_rslora: bool = False
) -> dict[str, Any]:
    """Fields of a ``LoraConfig`` that give each module its rank, and all the same ``scaling``.

    ``r`` is the largest rank, so that a server which sizes its buffers by ``r`` has room for all.
    PEFT computes ``lora_alpha / r`` of each module (``/ sqrt(r)`` with rsLoRA); the patterns undo
    that.
    """
    largest = max(ranks.values())
    lower = {name: rank for name, rank in ranks.items() if rank < largest}

    def alpha(rank: int) -> float:
        value = scaling * (math.sqrt(rank) if use_rslora else rank)
        return int(value) if value.is_integer() else value  # as a user would write it

    alphas = {name: alpha(rank) for name, rank in lower.items()}
    return {
        "r": largest,
        "lora_alpha": alpha(largest),
        "rank_pattern": exact_patterns(lower, ranks),
        "alpha_pattern": exact_patterns(alphas, ranks),
    }


def exact_patterns(values: Mapping[str, Value], names: Collection[str]) -> dict[str, Value]:
    """PEFT patterns that give each module its value, and none of the other ``names`` any.

    PEFT matches a pattern against the end of a name, first come first served: longest first, and a
    name that is the end of another one is tied to the beginning.
    """

    def pattern(name: str) -> str:
        ends_another = any(other.endswith(f".{name}") for other in names)
        return f"^{re.escape(name)}" if ends_another else re.escape(name)

    return {pattern(name): values[name] for name in sorted(values, key=len, reverse=True)}
