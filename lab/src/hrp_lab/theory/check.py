"""Compares every statement of the theory with a measurement (``hrp-lab theory check``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hrp.validation import check_integer
from hrp_lab.theory.cut_statements import truncation
from hrp_lab.theory.preheating_statements import (
    any_time,
    effective_rank_bounds,
    flat_mean,
    preheated,
    range_finder,
)
from hrp_lab.theory.rows import Row
from hrp_lab.theory.start_statements import (
    asymmetric_paths,
    random_limits,
    wise_asymmetric,
    wise_classic,
)

STATEMENTS: tuple[Callable[[int, np.random.Generator], Iterator[Row]], ...] = (
    random_limits,
    asymmetric_paths,
    wise_asymmetric,
    wise_classic,
    preheated,
    range_finder,
    flat_mean,
    any_time,
    effective_rank_bounds,
    truncation,
)


@dataclass(frozen=True)
class CheckConfig:
    """Says how thoroughly to check.

    Args:
        draws: number of random starts behind a mean, whose tolerance falls with its square root.
        seed: seed of all draws.
    """

    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("draws", self.draws, minimum=2)


def check_all(config: CheckConfig) -> list[Row]:
    """Run every statement, each with its own generator, so that one does not move another."""
    return [
        row
        for number, statement in enumerate(STATEMENTS)
        for row in statement(config.draws, np.random.default_rng([config.seed, number]))
    ]
