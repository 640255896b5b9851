"""States and checks docs/theory.md P4 to P8 and P10: starts found by asymmetric preheating.

``frozen`` names the factor that preheating freezes, at a random start of ``preheat_rank`` columns
(the library's ``train_factors`` names the other one). The start in its own direction is P4, in the
other direction P5. The formulas hold for orthonormal frozen columns at any time > 0, and for
Gaussian ones in the limit of long preheating (docs/theory.md, P7); that the other direction never
loses holds for all of them, at any time. Each closed form stands before its check.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from hrp_lab.theory.ensembles import mean_leading_cosines
from hrp_lab.theory.flow import random_start, start_at
from hrp_lab.theory.flow_preheating import preheat_again, preheat_flow, preheat_to_limit
from hrp_lab.theory.problem import (
    OTHER,
    SIDES,
    Direction,
    MatrixFactorization,
    flat_target,
    geometric_target,
    orthonormal_columns,
    power_law_target,
)
from hrp_lab.theory.rows import Pairs, Row, exact, sampled
from hrp_lab.theory.start_statements import TIGHT, limit_loss, random_limit, targets


def same_direction_loss(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*batch dimension preheat_rank"],
    rank: int,
    frozen: Direction = "A",
) -> Float[np.ndarray, "*batch"]:
    """Return L_A = 1/2 (||M||^2 - sum_{i <= rank} s_i(M P)^2) (P4, **derived**).

    P projects on the frozen columns. With ``frozen="B"``: direction "B" and P M.
    """
    MQ = problem.seen_from(frozen).M @ np.linalg.qr(frozen_columns)[0]
    values = np.linalg.svd(MQ, compute_uv=False)[..., :rank]
    return np.asarray((problem.energy - np.square(values).sum(-1)) / 2)


def other_direction_loss(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*batch dimension preheat_rank"],
    rank: int,
    frozen: Direction = "A",
) -> Float[np.ndarray, "*batch"]:
    """Return L_B = 1/2 ||(I - U_r U_r^T) M||^2, U_r leading left vectors of M P (P5, **derived**).

    With ``frozen="B"``: direction "A" and the right vectors of P M.
    """
    M = problem.seen_from(frozen).M
    U = np.linalg.svd(M @ np.linalg.qr(frozen_columns)[0], full_matrices=False)[0]
    held = np.square(U[..., :rank].swapaxes(-1, -2) @ M).sum((-1, -2))
    return np.asarray((problem.energy - held) / 2)


def preheated(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P4, P5 and P10 per draw: directions, their order, and R against R + 1."""
    problems, rank = targets(rng), 3
    draws = min(draws, 50)
    for frozen in SIDES:
        swap = OTHER[frozen]
        same, other, lost, risen, whole = [Pairs() for _ in range(5)]
        for problem in problems:
            dimension = problem.seen_from(frozen).n
            nested = orthonormal_columns(rng, dimension, dimension, (draws,))
            measured = []
            for preheat_rank in range(rank, dimension + 1):
                columns = nested[..., :preheat_rank]
                update = preheat_to_limit(problem, columns, frozen)
                L_same = update.limit_loss(problem, rank, frozen)
                L_other = update.limit_loss(problem, rank, swap)
                same.append((same_direction_loss(problem, columns, rank, frozen), L_same))
                other.append((other_direction_loss(problem, columns, rank, frozen), L_other))
                lost.append((L_same, L_other))
                measured.append(L_same)
                if preheat_rank >= min(problem.m, problem.n):
                    again = preheat_again(problem, update, frozen)
                    best = np.full(draws, problem.optimum(rank))
                    whole += [(best, again.limit_loss(problem, rank, side)) for side in SIDES]
            risen += pairwise(measured)
        after = f"after preheating with {frozen} frozen"
        yield exact("P4", f"loss of direction {frozen} {after}", same)
        yield exact("P4", f"nor does a nested R ever raise it, {frozen} frozen", risen, "<=")
        yield exact("P5", f"loss of direction {swap} {after}", other)
        yield exact("P5", f"{swap} never loses to {frozen} {after}", lost, "<=")
        yield exact("P10", f"a second half-sweep: optimal for R >= rank(M), {frozen} first", whole)


def range_finder_bound(problem: MatrixFactorization, preheat_rank: int) -> float:
    """Return the least bound of E 1/2 ||(I - Q Q^T) M||^2, Q the whole range of M P (P5).

    1/2 (1 + k / (p - 1)) sum_{j > k} s_j^2, preheat_rank = k + p, at the best k >= 0 with p >= 2
    (Halko, Martinsson and Tropp 2011, Theorem 10.5). ``preheat_rank`` is at least 2.
    """
    tails = problem.energy - np.concatenate([[0], np.cumsum(problem.singular_values**2)])
    k = np.arange(min(preheat_rank - 1, tails.size))
    return float(((1 + k / (preheat_rank - k - 1)) * np.maximum(tails[k], 0)).min() / 2)


def range_finder(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check the bounds of P5 and P10, on the range found and after a second half-sweep."""
    problem, rank = power_law_target(24, 32, exponent=1.0, first=3.0), 3
    for preheat_rank in (4, 8, 16):
        columns = orthonormal_columns(rng, problem.n, preheat_rank, (draws,))
        update = preheat_to_limit(problem, columns)
        bound = range_finder_bound(problem, preheat_rank)
        left = limit_loss(problem, update.U, "B")
        yield sampled("P5", f"E of what the range leaves, R = {preheat_rank}", bound, left, "<=")
        again = preheat_again(problem, update).limit_loss(problem, rank, "B")
        claim = f"E L_B after a second half-sweep, R = {preheat_rank}"
        yield sampled("P10", claim, problem.optimum(rank) + bound, again, "<=")
    few = orthonormal_columns(rng, problem.n, problem.m, (20,))
    left = limit_loss(problem, preheat_to_limit(problem, few).U, "B")
    yield exact("P5", "the range leaves nothing at R = rank(M)", [(np.zeros(20), left)])
    flat = flat_target(12, 32, 32)
    runs = [preheat_to_limit(flat, orthonormal_columns(rng, 32, R, (20,))) for R in (2, 6, 24)]
    pairs = [(np.full(20, flat.optimum(2)), run.limit_loss(flat, 2, "B")) for run in runs]
    yield exact("P5", "direction B is optimal on a flat target, every R >= r", pairs)


def flat_same_direction_mean(
    k: int, dimension: int, preheat_rank: int, rank: int, level: float = 1.0
) -> float:
    """Return E L_A exactly, for ``k`` equal singular values ``level`` (P6, **derived**).

    level^2 / 2 (k - E sum of the ``rank`` largest squared cosines between the target's row space
    and the frozen columns): real Jacobi eigenvalues, by quadrature. ``dimension`` is n, the frozen
    factor's.

    >>> round(flat_same_direction_mean(12, 32, preheat_rank=6, rank=2), 4)
    5.3684
    """
    return level**2 / 2 * (k - mean_leading_cosines(dimension, k, preheat_rank, rank))


def flat_mean(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P6: the exact mean of P4 for flat targets, Figure 1's among them."""
    settings = [(12, 32, R, 2) for R in (2, 3, 6, 12, 20)] + [(5, 20, 9, 3), (3, 16, 4, 1)]
    for k, n, preheat_rank, rank in settings:
        columns = orthonormal_columns(rng, n, preheat_rank, (draws,))
        losses = same_direction_loss(flat_target(k, n, n), columns, rank)
        claim = f"E L_A, {k} equal values of {n}, R = {preheat_rank}, r = {rank}"
        yield sampled("P6", claim, flat_same_direction_mean(k, n, preheat_rank, rank), losses)


def any_time(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P7 for orthonormal frozen columns, however short, and P5 for Gaussian ones."""
    problems = targets(rng)
    for frozen in SIDES:
        pairs, lost = Pairs(), Pairs()
        for problem in problems:
            columns = orthonormal_columns(rng, problem.seen_from(frozen).n, 4, (3,))
            start = start_at(problem, columns, frozen)
            brief = preheat_flow(problem, start, 0.01, OTHER[frozen], TIGHT)
            full = preheat_to_limit(problem, columns, frozen)
            uneven = random_start(problem, 4, rng, 50, "gaussian", frozen)
            early = preheat_flow(problem, uneven, 0.5, OTHER[frozen], TIGHT)
            for side in SIDES:
                pairs.append(
                    (full.limit_loss(problem, 3, side), brief.limit_loss(problem, 3, side))
                )
            same, other = (early.limit_loss(problem, 3, side) for side in (frozen, OTHER[frozen]))
            lost.append((same, other))
        claim = f"nor if Gaussian preheating stops at t = 0.5, {frozen} frozen"
        yield exact("P5", claim, lost, "<=")
        yield exact("P7", f"t = 0.01 of preheating is as good as all, {frozen} frozen", pairs)


def same_direction_ceiling(
    problem: MatrixFactorization, preheat_rank: int, rank: int, frozen: Direction = "A"
) -> float:
    """Return the upper bound of E L_A, the chord (P8, **derived**).

    It runs from random at R = rank to L* at R = n:
    ((n - R) E L_random + (R - rank) L*) / (n - rank); equality at both ends. In terms of the
    effective rank k_r = rank ||M||^2 / sum_{i <= rank} s_i^2, the gain over random is at least
    (R - rank) / (n - rank) * rank * (1 / k_r - 1 / n) * ||M||^2 / 2.

    >>> round(same_direction_ceiling(MatrixFactorization(np.diag([1.0, 0.0, 0.0])), 2, 1), 6)
    0.166667
    """
    n = problem.seen_from(frozen).n
    if n == rank:
        return problem.optimum(rank)
    share = (preheat_rank - rank) / (n - rank)
    return (1 - share) * random_limit(problem, rank, frozen) + share * problem.optimum(rank)


def same_direction_floor(
    problem: MatrixFactorization, preheat_rank: int, rank: int, frozen: Direction = "A"
) -> float:
    """Return the larger of L* and random LoRA's loss at rank R, below E L_A (P8, **derived**)."""
    return max(problem.optimum(rank), random_limit(problem, preheat_rank, frozen))


def effective_rank_bounds(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P8: E L_A lies under the chord from random to optimum, and over the floor."""
    problems = {
        "geometric": geometric_target(24, 32, ratio=0.8, first=3.0),
        "flat": flat_target(12, 32, 32),
    }
    for name, problem in problems.items():
        for preheat_rank in (3, 6, 16, 32):
            columns = orthonormal_columns(rng, problem.n, preheat_rank, (draws,))
            losses = same_direction_loss(problem, columns, 3)
            ceiling = same_direction_ceiling(problem, preheat_rank, 3)
            floor = same_direction_floor(problem, preheat_rank, 3)
            where = f"{name} target, R = {preheat_rank}"
            yield sampled("P8", f"E L_A under the chord, {where}", ceiling, losses, "<=")
            yield sampled("P8", f"E L_A over the floor, {where}", floor, losses, ">=")
