"""Sweeps the loss right after the cut, plain SVD against the metric, over condition numbers.

Inputs of second moment X make the loss 1/2 ||Y^(1/2) (B A^T - M) X^(1/2)||_F^2. Classic preheating
by gradient flow at rank R is cut to rank r in both ways; nothing is trained after the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hrp.spectra.truncation import DAMPING
from hrp.validation import check_integer, check_positive
from hrp_lab.theory.cut_statements import least_cost
from hrp_lab.theory.flow import gradient_flow, random_start
from hrp_lab.theory.flow_preheating import spectrum_of
from hrp_lab.theory.problem import (
    WeightedFactorization,
    check_ascending,
    geometric_target,
    target_of_spectrum,
    weight_of_condition,
)
from hrp_lab.theory.rows import estimate

Weights = Literal["inputs", "inputs and outputs"]
WEIGHTS: tuple[Weights, ...] = ("inputs", "inputs and outputs")
LOSSES = ("preheated", "plain", "metric", "optimum")
"""Losses before the cut, after either cut, and the least that any matrix of rank r has."""

_ROUNDING = 1e-9
"""A win by less than this share of the loss is none: at condition 1 both cuts are the same."""


@dataclass(frozen=True)
class TruncationConfig:
    """Holds the sweep's settings; s_i = first * ratio^(i-1), with random singular vectors.

    Args:
        m: rows of the target.
        n: columns of the target.
        ratio: decay of the target's singular values.
        first: the largest singular value.
        preheat_rank: R.
        rank: r, that of the cut.
        conditions: condition numbers of X, and of Y where outputs are weighted too; ascending.
        preheat_times: flow times of preheating, ascending, from a random orthonormal A.
        damping: damping of the cut in the metric, as `hrp.spectra.truncation` takes it.
        draws: number of targets, each with weights and a start of its own.
        seed: seed of all draws.
    """

    m: int = 24
    n: int = 32
    ratio: float = 0.8
    first: float = 3.0
    preheat_rank: int = 12
    rank: int = 3
    conditions: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)
    preheat_times: tuple[float, ...] = (0.3, 1.0, 3.0)
    damping: float = DAMPING
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the run would only find late."""
        target = geometric_target(self.m, self.n, self.ratio, self.first)
        target.check_ranks(self.rank, self.preheat_rank, min(self.m, self.n))
        check_integer("draws", self.draws, minimum=2)
        check_positive("damping", self.damping)
        check_ascending("conditions", "finite numbers from 1", self.conditions, 1 - _ROUNDING)
        check_ascending("preheat_times", "finite numbers above 0", self.preheat_times, 0.0)


@dataclass(frozen=True, eq=False)
class TruncationSweep:
    """Holds losses as shares of that at step 0, (draws,) by weights, condition, time and name."""

    config: TruncationConfig
    losses: dict[tuple[Weights, float, float, str], Float[np.ndarray, " draws"]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: mean, standard error and spread over the draws of every loss."""
        rows: list[dict[str, Any]] = []
        for (weights, condition, time, name), shares in self.losses.items():
            low, high = np.percentile(shares, [10, 90])
            rows.append(
                {"weights": weights, "condition": condition, "preheat_time": time, "loss": name}
                | estimate(shares)._asdict()
                | {"percentile_10": float(low), "percentile_90": float(high)}
            )
        return rows

    def avoided(self) -> list[dict[str, Any]]:
        """Return the share of the plain cut's rise of the loss that the metric avoids, by pairs."""
        rows = []
        for setting in product(WEIGHTS, self.config.conditions, self.config.preheat_times):
            before, plain, metric = (self.losses[*setting, name] for name in LOSSES[:3])
            share = estimate((plain - metric) / (plain - before))
            where = dict(zip(("weights", "condition", "preheat_time"), setting, strict=True))
            wins = {"wins": int((metric < plain * (1 - _ROUNDING)).sum()), "draws": metric.size}
            rows.append(where | share._asdict() | wins)
        return rows

    def table(self) -> str:
        """Return the losses around the cut, a line for every condition number and time."""
        head = "".join(f" {name:>9}" for name in LOSSES)
        lines = [
            "mean losses as shares of the loss at step 0; avoided: of the plain cut's rise, +- SE",
            "",
            f"{'weighted':<19} {'condition':>9} {'time':>5}{head}   avoided",
        ]
        for row in self.avoided():
            setting = row["weights"], row["condition"], row["preheat_time"]
            means = "".join(f" {self.losses[*setting, name].mean():>9.4f}" for name in LOSSES)
            share = f"{row['mean']:>8.1%} +- {row['standard_error']:.1%}"
            lines.append(f"{setting[0]:<19} {setting[1]:>9g} {setting[2]:>5g}{means} {share}")
        return "\n".join(lines)


def truncation_sweep(config: TruncationConfig) -> TruncationSweep:
    """Preheat and cut ``draws`` problems at every condition number, with paired random numbers.

    Raises `SolverError` where the flow is too stiff for the solver.
    """
    losses = {}
    for weights, condition in product(WEIGHTS, config.conditions):
        draws = [
            _cut_losses(config, weights, condition, np.random.default_rng([config.seed, draw]))
            for draw in range(config.draws)
        ]
        settings = product(config.preheat_times, LOSSES)
        for (time, name), values in zip(settings, np.transpose(draws), strict=True):
            losses[weights, condition, time, name] = values
    return TruncationSweep(config, losses)


def _cut_losses(
    config: TruncationConfig, weights: Weights, condition: float, rng: np.random.Generator
) -> list[float]:
    """Return one draw's `LOSSES` at every time; equal seeds give equal targets, axes and starts."""
    spectrum = geometric_target(config.m, config.n, config.ratio, config.first).singular_values
    M = target_of_spectrum(spectrum, config.m, config.n, rng).M
    X = weight_of_condition(rng, config.n, condition)
    Y = weight_of_condition(rng, config.m, condition if weights != "inputs" else 1.0)
    problem = WeightedFactorization(M, X, Y)
    start = random_start(problem, config.preheat_rank, rng, draws=1)
    run = gradient_flow(problem, start, np.array(config.preheat_times))
    optimum = least_cost(M, X, Y, config.rank)
    losses = []
    for index in range(len(config.preheat_times)):
        A, B = (factor[0] for factor in run.factors_at(index))
        update = spectrum_of(A, B)
        metrics = update.U.T @ Y @ update.U, update.Vh @ X @ update.Vh.T
        left, right = update.metric_cut(*metrics, config.rank, config.damping)
        products = B @ A.T, update.plain_cut(config.rank), left @ right
        losses += [*(float(problem.cost(product - M)) for product in products), optimum]
    return [loss / float(problem.cost(M)) for loss in losses]
