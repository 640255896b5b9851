"""Gives the closed forms for random and wise starts: docs/theory.md T1, P1 to P3, P9.

``direction`` is the factor that carries the start; in asymmetric LoRA it is frozen, and the other
one, zero at time 0, is trained. "B" is "A" on the transposed target. Times are flow times.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from jaxtyping import Float

from hrp.validation import check_choice, check_positive
from hrp_lab.theory.ensembles import mean_wishart_decay
from hrp_lab.theory.flow_starts import RandomKind
from hrp_lab.theory.matrix_arguments import checked_rank, checked_times
from hrp_lab.theory.problem import Direction, MatrixFactorization


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
    when = checked_times(times)
    x, V = np.linalg.eigh(frozen.swapaxes(-1, -2) @ frozen)
    x = np.maximum(x, 0)[..., None, :]
    t = when[:, None]
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

    Arguments as in `asymmetric_factor`.
    """
    seen = problem.seen_from(direction)
    when = checked_times(times)
    held, sigma = _held_by(seen, frozen)
    left = np.exp(-2 * when[:, None] * np.square(sigma)[..., None, :])
    return (seen.energy - (held[..., None, :] * (1 - left)).sum(-1)) / 2


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


def random_limit(problem: MatrixFactorization, rank: int, direction: Direction = "A") -> float:
    """Return 1/2 (1 - rank / n) ||M||^2, the expected asymmetric loss as t -> infinity (T1, paper).

    For Gaussian and orthogonal starts alike; m in place of n for direction "B".
    """
    seen = problem.seen_from(direction)
    checked_rank("rank", rank, seen.n, "the carrier's dimension")
    return (1 - rank / seen.n) * seen.energy / 2


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
    seen = problem.seen_from(direction)
    check_choice("kind", kind, get_args(RandomKind))
    when = checked_times([time])[0]
    if kind == "orthogonal":
        trace = rank * math.exp(-2 * when)
    else:
        trace = mean_wishart_decay(seen.n, rank, 2 * when / seen.n)
    return random_limit(problem, rank, direction) + seen.energy / (2 * seen.n) * trace


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
    check_positive("scale", scale)
    decay = np.exp(-2 * scale**2 * checked_times(times))
    return problem.optimum(rank) + decay * problem.held_energy(rank) / 2


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
    check_positive("scale", scale)
    square = scale**2
    problem.check_rank("rank", rank)
    s = problem.singular_values[:rank]
    rate = np.sqrt(square**2 + 4 * s**2)
    high = (2 * s + rate) / square
    q = (high - 1) / (1 + 1 / high) * np.exp(-rate * checked_times(times)[:, None])
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
    problem.check_rank("rank", rank)
    check_positive("scale", scale)
    return np.sqrt(scale**4 + 4 * problem.singular_values[:rank] ** 2)
