"""Compares every statement of the theory with a measurement (``hrp-lab theory check``).

Measurements come from the flow solver, from the library's `factored_svd`, or from random draws;
predictions from `predict` and `predict_preheated` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise, product

import numpy as np

from hrp.validation import check_integer
from hrp_lab.theory import predict, predict_preheated
from hrp_lab.theory.check_truncation import truncation
from hrp_lab.theory.flow import TrainFactors, Trajectory, gradient_flow
from hrp_lab.theory.flow_preheating import preheat_again, preheat_flow, preheat_to_limit
from hrp_lab.theory.flow_starts import RandomKind, random_start, start_at, wise_start
from hrp_lab.theory.problem import (
    Direction,
    MatrixFactorization,
    flat_target,
    geometric_target,
    orthonormal_columns,
    power_law_target,
)
from hrp_lab.theory.rows import Pairs, Row, exact, sampled

_TIGHT = 1e-12
_TIMES = np.linspace(0.0, 4.0, 41)
_TRAINED: dict[Direction, TrainFactors] = {"A": "B", "B": "A"}
_OTHER: dict[Direction, Direction] = {"A": "B", "B": "A"}
_KINDS: tuple[RandomKind, ...] = ("gaussian", "orthogonal")
_SIDES: tuple[Direction, ...] = ("A", "B")


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
        check_integer("seed", self.seed, minimum=0)


def check_all(config: CheckConfig) -> list[Row]:
    """Run every statement, each with its own generator, so that one does not move another."""
    return [
        row
        for number, statement in enumerate(STATEMENTS)
        for row in statement(config.draws, np.random.default_rng([config.seed, number]))
    ]


def targets(rng: np.random.Generator) -> list[MatrixFactorization]:
    """Return wide, tall and decaying targets without symmetries that could hide a mistake."""
    return [
        MatrixFactorization(rng.standard_normal((6, 9)) / 2),
        MatrixFactorization(rng.standard_normal((9, 5)) / 2),
        geometric_target(24, 32, ratio=0.8, first=3.0),
        power_law_target(10, 8, exponent=1.5, first=2.0),
    ]


def random_limits(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check T1 and P9: means of random starts, in the limit and on the way."""
    problem, rank = geometric_target(24, 32, ratio=0.8, first=3.0), 3
    for direction in _SIDES:
        for kind in _KINDS:
            start = random_start(problem, rank, rng, draws, kind, direction)
            limits = predict.limit_loss(problem, start.carrier, direction)
            claim = f"E L(inf) of a random {kind} {direction}, frozen"
            expected = predict.random_limit(problem, rank, direction)
            yield sampled("T1", claim, expected, limits)
            path = predict.asymmetric_loss(problem, start.carrier, np.array([0.5]), direction)[:, 0]
            claim = f"E L(0.5) of a random {kind} {direction}, above its limit"
            yield sampled("T1", claim, expected, path, ">=")
            claim = f"E L(0.5) of a random {kind} {direction}, exactly"
            yield sampled(
                "P9", claim, predict.random_path(problem, rank, 0.5, kind, direction), path
            )


def asymmetric_paths(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P1: the closed path against the solver, for three draws on each target."""
    problems = targets(rng)
    for direction in _SIDES:
        factors, losses = [], []
        for problem, kind in product(problems, _KINDS):
            start = random_start(problem, 3, rng, 3, kind, direction)
            run = gradient_flow(
                problem, start, _TIMES, _TRAINED[direction], _TIGHT, keep_factors=True
            )
            trained = run.factors_at(-1)["AB".index(_TRAINED[direction])]
            closed = predict.asymmetric_factor(problem, start.carrier, _TIMES[-1:], direction)
            factors.append((closed, trained))
            closed = predict.asymmetric_loss(problem, start.carrier, _TIMES, direction)
            losses.append((closed, run.losses))
        yield exact("P1", f"trained factor at t = 4, {direction} frozen", factors)
        yield exact("P1", f"loss along the path, {direction} frozen", losses)


def wise_asymmetric(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P2: the decay of the wise start, at three scales."""
    problems = targets(rng)
    for direction in _SIDES:
        pairs = []
        for problem, scale in product(problems, (0.5, 1.0, 2.0)):
            start = wise_start(problem, 3, direction, scale)
            run = gradient_flow(problem, start, _TIMES, _TRAINED[direction], _TIGHT)
            pairs.append((predict.wise_asymmetric_loss(problem, 3, _TIMES, scale), run.losses))
        yield exact("P2", f"loss of the wise start, {direction} frozen", pairs)


def wise_classic(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P3: pairs, conserved quantity, loss and final rate of the wise classic start."""
    problems = targets(rng)
    for direction in _SIDES:
        pairs, conserved, losses, rates = [], [], [], []
        for problem, scale in product(problems, (0.3, 1.0, 2.0)):
            final = predict.wise_classic_rates(problem, 3, scale)
            times = np.append(_TIMES, 25 / final.min())
            start = wise_start(problem, 3, direction, scale)
            run = gradient_flow(problem, start, times, "both", _TIGHT, keep_factors=True)
            carrier, other = _norms(run, direction)
            a, b, _ = predict.wise_classic_pairs(problem, 3, times, scale)
            pairs += [(a, carrier), (b, other)]
            conserved.append((np.full_like(a, scale**2), carrier**2 - other**2))
            losses.append((predict.wise_classic_loss(problem, 3, times, scale), run.losses))
            # (a b)' = (a^2 + b^2) (s - a b): the rate at which a pair approaches its s.
            rates.append((final, carrier[-1] ** 2 + other[-1] ** 2))
        yield exact("P3", f"pairs a_i, b_i of the wise start, classic, {direction}", pairs)
        yield exact("P3", f"a_i^2 - b_i^2 stays scale^2, {direction}", conserved)
        yield exact("P3", f"loss of the wise start, classic, {direction}", losses)
        yield exact("P3", f"final rate sqrt(scale^4 + 4 s_i^2), {direction}", rates)


def _norms(run: Trajectory, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return the column norms of the carrier and of the other factor, (times, rank) each."""
    A, B = run.factors()
    carrier, other = (A, B) if direction == "A" else (B, A)
    return np.linalg.norm(carrier, axis=-2), np.linalg.norm(other, axis=-2)


def preheated(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P4, P5 and P10 per draw: directions, their order, and R against R + 1."""
    problems = targets(rng)
    for frozen in _SIDES:
        cases = [_preheated_case(problem, frozen, min(draws, 50), rng) for problem in problems]
        same, other, lost, risen, whole = (
            list(chain.from_iterable(lists)) for lists in zip(*cases, strict=True)
        )
        swap = _OTHER[frozen]
        after = f"after preheating with {frozen} frozen"
        yield exact("P4", f"loss of direction {frozen} {after}", same)
        yield exact("P4", f"nor does a nested R ever raise it, {frozen} frozen", risen, "<=")
        yield exact("P5", f"loss of direction {swap} {after}", other)
        yield exact("P5", f"{swap} never loses to {frozen} {after}", lost, "<=")
        yield exact("P10", f"a second half-sweep: optimal for R >= rank(M), {frozen} first", whole)


def _preheated_case(
    problem: MatrixFactorization, frozen: Direction, draws: int, rng: np.random.Generator
) -> tuple[Pairs, Pairs, Pairs, Pairs, Pairs]:
    """Return the pairs of P4, P5, P5 against P4, R against R + 1, and P10, at every R."""
    rank, dimension = 3, problem.seen_from(frozen).n
    nested = orthonormal_columns(rng, dimension, dimension, (draws,))
    same, other, lost, whole = [], [], [], []
    for preheat_rank in range(rank, dimension + 1):
        columns = nested[..., :preheat_rank]
        update = preheat_to_limit(problem, columns, frozen)
        L_same = update.limit_loss(problem, rank, frozen)
        L_other = update.limit_loss(problem, rank, _OTHER[frozen])
        same.append((predict_preheated.same_direction_loss(problem, columns, rank, frozen), L_same))
        other.append(
            (predict_preheated.other_direction_loss(problem, columns, rank, frozen), L_other)
        )
        lost.append((L_same, L_other))
        if preheat_rank >= min(problem.m, problem.n):
            again = preheat_again(problem, update, frozen)
            for side in _SIDES:
                best = np.full(draws, problem.optimum(rank))
                whole.append((best, again.limit_loss(problem, rank, side)))
    measured = [losses for _, losses in same]
    return same, other, lost, list(pairwise(measured)), whole


def range_finder(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check the bounds of P5 and P10, on the range found and after a second half-sweep."""
    problem, rank = power_law_target(24, 32, exponent=1.0, first=3.0), 3
    for preheat_rank in (4, 8, 16):
        columns = orthonormal_columns(rng, problem.n, preheat_rank, (draws,))
        update = preheat_to_limit(problem, columns)
        bound = predict_preheated.range_finder_bound(problem, preheat_rank)
        left = predict.limit_loss(problem, update.U, "B")
        yield sampled("P5", f"E of what the range leaves, R = {preheat_rank}", bound, left, "<=")
        again = preheat_again(problem, update).limit_loss(problem, rank, "B")
        claim = f"E L_B after a second half-sweep, R = {preheat_rank}"
        yield sampled("P10", claim, problem.optimum(rank) + bound, again, "<=")
    few = orthonormal_columns(rng, problem.n, problem.m, (20,))
    left = predict.limit_loss(problem, preheat_to_limit(problem, few).U, "B")
    yield exact("P5", "the range leaves nothing at R = rank(M)", [(np.zeros(20), left)])
    flat = flat_target(12, 32, 32)
    runs = [preheat_to_limit(flat, orthonormal_columns(rng, 32, R, (20,))) for R in (2, 6, 24)]
    pairs = [(np.full(20, flat.optimum(2)), run.limit_loss(flat, 2, "B")) for run in runs]
    yield exact("P5", "direction B is optimal on a flat target, every R >= r", pairs)


def flat_mean(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P6: the exact mean of P4 for flat targets, Figure 1's among them."""
    settings = [(12, 32, R, 2) for R in (2, 3, 6, 12, 20)] + [(5, 20, 9, 3), (3, 16, 4, 1)]
    for k, n, preheat_rank, rank in settings:
        columns = orthonormal_columns(rng, n, preheat_rank, (draws,))
        losses = predict_preheated.same_direction_loss(flat_target(k, n, n), columns, rank)
        claim = f"E L_A, {k} equal values of {n}, R = {preheat_rank}, r = {rank}"
        expected = predict_preheated.flat_same_direction_mean(k, n, preheat_rank, rank)
        yield sampled("P6", claim, expected, losses)


def any_time(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P7 for orthonormal frozen columns, however short, and P5 for Gaussian ones."""
    problems = targets(rng)
    for frozen in _SIDES:
        pairs, lost = [], []
        for problem in problems:
            columns = orthonormal_columns(rng, problem.seen_from(frozen).n, 4, (3,))
            start = start_at(problem, columns, frozen)
            brief = preheat_flow(problem, start, 0.01, _TRAINED[frozen], _TIGHT)
            full = preheat_to_limit(problem, columns, frozen)
            pairs += [
                (full.limit_loss(problem, 3, side), brief.limit_loss(problem, 3, side))
                for side in _SIDES
            ]
            uneven = random_start(problem, 4, rng, 50, "gaussian", frozen)
            early = preheat_flow(problem, uneven, 0.5, _TRAINED[frozen], _TIGHT)
            same, other = (early.limit_loss(problem, 3, side) for side in (frozen, _OTHER[frozen]))
            lost.append((same, other))
        yield exact(
            "P5", f"nor if Gaussian preheating stops at t = 0.5, {frozen} frozen", lost, "<="
        )
        yield exact("P7", f"t = 0.01 of preheating is as good as all, {frozen} frozen", pairs)


def effective_rank_bounds(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P8: E L_A lies under the chord from random to optimum, and over the floor."""
    for name, problem in {
        "geometric": geometric_target(24, 32, ratio=0.8, first=3.0),
        "flat": flat_target(12, 32, 32),
    }.items():
        for preheat_rank in (3, 6, 16, 32):
            columns = orthonormal_columns(rng, problem.n, preheat_rank, (draws,))
            losses = predict_preheated.same_direction_loss(problem, columns, 3)
            ceiling = predict_preheated.same_direction_ceiling(problem, preheat_rank, 3)
            floor = predict_preheated.same_direction_floor(problem, preheat_rank, 3)
            where = f"{name} target, R = {preheat_rank}"
            yield sampled("P8", f"E L_A under the chord, {where}", ceiling, losses, "<=")
            yield sampled("P8", f"E L_A over the floor, {where}", floor, losses, ">=")


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
