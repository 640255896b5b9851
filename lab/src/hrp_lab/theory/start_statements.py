"""States and checks docs/theory.md T1, P1 to P3 and P9: random and wise starts.

``direction`` is the factor that carries the start; in asymmetric LoRA it is frozen, and the other
one, zero at time 0, is trained. "B" is "A" on the transposed target. Times are flow times. Each
closed form stands before its check, which compares it with the flow solver or random draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from jaxtyping import Float

from hrp_lab.theory.ensembles import mean_wishart_decay
from hrp_lab.theory.flow import RandomKind, gradient_flow, random_start, wise_start
from hrp_lab.theory.problem import (
    OTHER,
    SIDES,
    Direction,
    MatrixFactorization,
    geometric_target,
    power_law_target,
)
from hrp_lab.theory.rows import Row, exact, sampled

TIGHT = 1e-12
_TIMES = np.linspace(0.0, 4.0, 41)
_KINDS: tuple[RandomKind, ...] = ("gaussian", "orthogonal")


def targets(rng: np.random.Generator) -> list[MatrixFactorization]:
    """Return wide, tall and decaying targets without symmetries that could hide a mistake."""
    return [
        MatrixFactorization(rng.standard_normal((6, 9)) / 2),
        MatrixFactorization(rng.standard_normal((9, 5)) / 2),
        geometric_target(24, 32, ratio=0.8, first=3.0),
        power_law_target(10, 8, exponent=1.5, first=2.0),
    ]


def random_limit(problem: MatrixFactorization, rank: int, direction: Direction = "A") -> float:
    """Return 1/2 (1 - rank / n) ||M||^2, the expected asymmetric loss as t -> infinity (T1, paper).

    For Gaussian and orthogonal starts alike; m in place of n for direction "B".
    """
    return (1 - rank / problem.seen_from(direction).n) * problem.energy / 2


def random_path(
    problem: MatrixFactorization,
    rank: int,
    time: float,
    kind: RandomKind = "orthogonal",
    direction: Direction = "A",
) -> float:
    """Return the expected asymmetric loss at a time, of `random_start` (P9, **derived**).

    Its limit plus ||M||^2 / (2 n) E tr e^{-2 t A^T A}: the trace is rank e^{-2t} for orthonormal
    columns, and a Wishart expectation, by quadrature, for Gaussian ones.
    """
    n = problem.seen_from(direction).n
    if kind == "orthogonal":
        trace = rank * math.exp(-2 * time)
    else:
        trace = mean_wishart_decay(n, rank, 2 * time / n)
    return random_limit(problem, rank, direction) + problem.energy / (2 * n) * trace


def random_limits(draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check T1 and P9: means of random starts, in the limit and on the way."""
    problem, rank = geometric_target(24, 32, ratio=0.8, first=3.0), 3
    for direction, kind in product(SIDES, _KINDS):
        start = random_start(problem, rank, rng, draws, kind, direction)
        limits = limit_loss(problem, start.carrier, direction)
        path = asymmetric_loss(problem, start.carrier, np.array([0.5]), direction)[:, 0]
        expected, name = random_limit(problem, rank, direction), f"of a random {kind} {direction}"
        yield sampled("T1", f"E L(inf) {name}, frozen", expected, limits)
        yield sampled("T1", f"E L(0.5) {name}, above its limit", expected, path, ">=")
        on_the_way = random_path(problem, rank, 0.5, kind, direction)
        yield sampled("P9", f"E L(0.5) {name}, exactly", on_the_way, path)


def asymmetric_factor(
    problem: MatrixFactorization,
    frozen: Float[np.ndarray, "*batch dimension rank"],
    times: Float[np.ndarray, " times"],
    direction: Direction = "A",
) -> Float[np.ndarray, "*batch times other rank"]:
    """Return the trained factor, B(t) = M A (A^T A)^-1 (I - e^{-t A^T A}) (P1, **derived**).

    ``frozen`` is A (n, rank) for direction "A", B (m, rank) for "B". Dependent columns are no
    exception: (1 - e^{-tx}) / x is t at x = 0.
    """
    seen = problem.seen_from(direction)
    x, V = np.linalg.eigh(frozen.swapaxes(-1, -2) @ frozen)
    x = np.maximum(x, 0)[..., None, :]
    t = times[:, None]
    grown = np.where(x > 0, -np.expm1(-t * x) / np.where(x > 0, x, 1), t)
    V = V[..., None, :, :]
    return ((seen.M @ frozen)[..., None, :, :] @ V * grown[..., None, :]) @ V.swapaxes(-1, -2)


def asymmetric_loss(
    problem: MatrixFactorization,
    frozen: Float[np.ndarray, "*batch dimension rank"],
    times: Float[np.ndarray, " times"],
    direction: Direction = "A",
) -> Float[np.ndarray, "*batch times"]:
    """Return the loss along the path of a frozen factor (P1, **derived**).

    L(t) = 1/2 ||M (I - P_A)||^2 + 1/2 ||M A (A^T A)^{-1/2} e^{-t A^T A}||^2.
    """
    held, sigma = _held_by(problem.seen_from(direction), frozen)
    left = np.exp(-2 * times[:, None] * np.square(sigma)[..., None, :])
    return (problem.energy - (held[..., None, :] * (1 - left)).sum(-1)) / 2


def limit_loss(
    problem: MatrixFactorization,
    frozen: Float[np.ndarray, "*batch dimension rank"],
    direction: Direction = "A",
) -> Float[np.ndarray, "*batch"]:
    """Return 1/2 ||M (I - P_A)||^2, the asymmetric loss as t -> infinity (P1, **derived**)."""
    held, _ = _held_by(problem.seen_from(direction), frozen)
    return np.asarray((problem.energy - held.sum(-1)) / 2)


def _held_by(
    seen: MatrixFactorization, frozen: Float[np.ndarray, "*batch dimension rank"]
) -> tuple[Float[np.ndarray, "*batch k"], Float[np.ndarray, "*batch k"]]:
    """Return ||M q_i||^2 along the frozen factor's left singular vectors q_i, and its sigma_i."""
    Q, sigma, _ = np.linalg.svd(frozen, full_matrices=False)
    spanned = sigma > 1e-12 * sigma.max(-1, keepdims=True)
    return np.square(seen.M @ Q).sum(-2) * spanned, sigma


def asymmetric_paths(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P1: the closed path against the solver, for three draws on each target."""
    problems = targets(rng)
    for direction in SIDES:
        factors, losses = [], []
        for problem, kind in product(problems, _KINDS):
            start = random_start(problem, 3, rng, 3, kind, direction)
            run = gradient_flow(problem, start, _TIMES, OTHER[direction], TIGHT)
            trained = run.B if direction == "A" else run.A
            closed = problem, start.carrier, _TIMES, direction
            factors.append((asymmetric_factor(*closed)[..., -1, :, :], trained[..., -1, :, :]))
            losses.append((asymmetric_loss(*closed), run.losses))
        yield exact("P1", f"trained factor at t = 4, {direction} frozen", factors)
        yield exact("P1", f"loss along the path, {direction} frozen", losses)


def wise_asymmetric_loss(
    problem: MatrixFactorization,
    rank: int,
    times: Float[np.ndarray, " times"],
    scale: float = 1.0,
) -> Float[np.ndarray, " times"]:
    """Return L* + 1/2 e^{-2 scale^2 t} sum_{i <= rank} s_i^2 (P2, **derived**).

    The frozen factor holds ``scale`` times the leading singular vectors, on either side.

    >>> problem = MatrixFactorization(np.diag([2.0, 1.0]))
    >>> wise_asymmetric_loss(problem, 1, np.array([0.0])).tolist()
    [2.5]
    """
    return problem.optimum(rank) + np.exp(-2 * scale**2 * times) * problem.held_energy(rank) / 2


def wise_asymmetric(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P2: the decay of the wise start, at three scales."""
    problems = targets(rng)
    for direction in SIDES:
        pairs = []
        for problem, scale in product(problems, (0.5, 1.0, 2.0)):
            start = wise_start(problem, 3, direction, scale)
            run = gradient_flow(problem, start, _TIMES, OTHER[direction], TIGHT)
            pairs.append((wise_asymmetric_loss(problem, 3, _TIMES, scale), run.losses))
        yield exact("P2", f"loss of the wise start, {direction} frozen", pairs)


def wise_classic_pairs(
    problem: MatrixFactorization,
    rank: int,
    times: Float[np.ndarray, " times"],
    scale: float = 1.0,
) -> tuple[
    Float[np.ndarray, "times rank"],
    Float[np.ndarray, "times rank"],
    Float[np.ndarray, "times rank"],
]:
    """Return a_i(t), b_i(t) and s_i - a_i b_i of the wise classic start (P3, **derived**).

    a' = -(ab - s) b, b' = -(ab - s) a from a = scale, b = 0 keep a^2 - b^2 = scale^2, so with
    a = scale cosh(z), b = scale sinh(z), u = e^{2z} solves a Riccati equation of constant
    coefficients: the path is explicit (docs/theory.md, P3). a belongs to the carrier.
    """
    square = scale**2
    rate = wise_classic_rates(problem, rank, scale)
    high = (2 * problem.singular_values[:rank] + rate) / square
    q = (high - 1) / (1 + 1 / high) * np.exp(-rate * times[:, None])
    u = (high - q / high) / (1 + q)
    to_go = q * (high + 1 / high) / (1 + q)
    residual = square / 4 * to_go * (1 + 1 / (u * high))
    root = np.sqrt(u)
    return scale / 2 * (root + 1 / root), scale / 2 * (root - 1 / root), residual


def wise_classic_loss(
    problem: MatrixFactorization,
    rank: int,
    times: Float[np.ndarray, " times"],
    scale: float = 1.0,
) -> Float[np.ndarray, " times"]:
    """Return L* + 1/2 sum_i (s_i - a_i b_i)^2 along `wise_classic_pairs` (P3, **derived**)."""
    residual = wise_classic_pairs(problem, rank, times, scale)[2]
    return problem.optimum(rank) + np.square(residual).sum(-1) / 2


def wise_classic_rates(
    problem: MatrixFactorization, rank: int, scale: float = 1.0
) -> Float[np.ndarray, " rank"]:
    """Return sqrt(scale^4 + 4 s_i^2), the rate at which s_i - a_i b_i decays in the end (P3)."""
    return np.sqrt(scale**4 + 4 * problem.singular_values[:rank] ** 2)


def wise_classic(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P3: pairs, conserved quantity, loss and final rate of the wise classic start."""
    problems = targets(rng)
    for direction in SIDES:
        pairs, conserved, losses, rates = [], [], [], []
        for problem, scale in product(problems, (0.3, 1.0, 2.0)):
            final = wise_classic_rates(problem, 3, scale)
            times = np.append(_TIMES, 25 / final.min())
            run = gradient_flow(
                problem, wise_start(problem, 3, direction, scale), times, "both", TIGHT
            )
            factors = (run.A, run.B) if direction == "A" else (run.B, run.A)
            carrier, other = (np.linalg.norm(factor, axis=-2) for factor in factors)
            a, b, _ = wise_classic_pairs(problem, 3, times, scale)
            pairs += [(a, carrier), (b, other)]
            conserved.append((np.full_like(a, scale**2), carrier**2 - other**2))
            losses.append((wise_classic_loss(problem, 3, times, scale), run.losses))
            # (a b)' = (a^2 + b^2) (s - a b): the rate at which a pair approaches its s.
            rates.append((final, carrier[-1] ** 2 + other[-1] ** 2))
        yield exact("P3", f"pairs a_i, b_i of the wise start, classic, {direction}", pairs)
        yield exact("P3", f"a_i^2 - b_i^2 stays scale^2, {direction}", conserved)
        yield exact("P3", f"loss of the wise start, classic, {direction}", losses)
        yield exact("P3", f"final rate sqrt(scale^4 + 4 s_i^2), {direction}", rates)
