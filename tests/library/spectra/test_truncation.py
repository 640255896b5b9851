"""The cut in the metric of the loss is the best one, over all matrices of the rank, in float64."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from hrp.spectra import truncation
from hrp.spectra.factorization import factored_svd
from hrp.spectra.truncation import DAMPING, loss_truncation, loss_values

NEARLY_ZERO = 1e-11
SHAPES = [(9, 14, 6), (15, 8, 8), (12, 12, 5)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def moments(size: int, seed: int, samples: int | None = None) -> torch.Tensor:
    """Second moments of correlated samples; of rank ``samples`` where these are fewer than size."""
    X = normal(samples or 3 * size, size, seed=seed) @ normal(size, size, seed=seed + 500)
    return X.mT @ X / len(X)


def spd(size: int, seed: int, condition: float = 100.0) -> torch.Tensor:
    Q = torch.linalg.qr(normal(size, size, seed=seed)).Q
    return (Q * torch.logspace(0, -np.log10(condition), size, dtype=torch.float64)) @ Q.mT


class Case:
    """An update with inputs of second moment X and output gradients of second moment Y."""

    def __init__(self, seed: int, m: int, n: int, R: int) -> None:
        self.X, self.Y = spd(n, seed + 10), spd(m, seed + 20)
        self.lora_A, self.lora_B = normal(R, n, seed=seed), normal(m, R, seed=seed + 30)
        self.U, self.S, self.Vh = factored_svd(self.lora_A, self.lora_B, scaling=0.7)
        self.delta_weight = 0.7 * self.lora_B @ self.lora_A
        self.left, self.right = self.U.mT @ self.Y @ self.U, self.Vh @ self.X @ self.Vh.mT

    def cut(self, rank: int, damping: float = DAMPING) -> torch.Tensor:
        P, Q = loss_truncation(self.S, self.left, self.right, rank, damping)
        return self.U @ P @ Q @ self.Vh

    def plain_cut(self, rank: int) -> torch.Tensor:
        return (self.U[:, :rank] * self.S[:rank]) @ self.Vh[:rank]

    def damped(self, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
        """X and Y in full space, damped by what the R x R metrics are damped by."""
        weights = self.S / self.S.sum()
        mean_X, mean_Y = ((weights * metric.diagonal()).sum() for metric in (self.right, self.left))
        return (
            self.X + damping * mean_X * torch.eye(len(self.X), dtype=torch.float64),
            self.Y + damping * mean_Y * torch.eye(len(self.Y), dtype=torch.float64),
        )


def root(metric: torch.Tensor) -> np.ndarray:
    values, vectors = np.linalg.eigh(metric.numpy())
    return (vectors * np.sqrt(values)) @ vectors.T


def cost(delta: torch.Tensor, cut: torch.Tensor, X: torch.Tensor, Y: torch.Tensor) -> float:
    return float(((delta - cut).mT @ Y @ (delta - cut) @ X).trace()) / 2


def best_in_full_space(delta: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, rank: int):
    """Weighted low-rank approximation by symmetric square roots of the full X and Y (numpy)."""
    root_X, root_Y = root(X), root(Y)
    U, S, Vh = np.linalg.svd(root_Y @ delta.numpy() @ root_X)
    best = np.linalg.solve(root_Y, (U[:, :rank] * S[:rank]) @ Vh[:rank])
    return torch.from_numpy(best @ np.linalg.inv(root_X)), float((S[rank:] ** 2).sum() / 2)


def assert_equal(left: torch.Tensor, right: torch.Tensor, share: float = 1e-8) -> None:
    assert (left - right).norm() <= share * right.norm()


@pytest.mark.parametrize("damping", [1e-9, DAMPING, 1.0])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_optimum_over_all_matrices_of_the_rank(seed, shape, rank, damping):
    case = Case(seed, *shape)
    X, Y = case.damped(damping)
    best, least = best_in_full_space(case.delta_weight, X, Y, rank)
    cut = case.cut(rank, damping)
    assert np.linalg.matrix_rank(cut.numpy(), tol=1e-9) == rank
    assert_equal(cut, best)
    assert cost(case.delta_weight, cut, X, Y) == pytest.approx(least, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_alternating_least_squares_finds_no_better_matrix(seed):
    """A reference that shares no algebra with the closed form: it starts anywhere and descends."""
    case, rank = Case(seed, 9, 14, 6), 2
    X, Y = case.damped(DAMPING)
    right = normal(rank, 14, seed=seed + 70)
    for _ in range(2000):
        left = torch.linalg.solve(right @ X @ right.mT, right @ X @ case.delta_weight.mT).mT
        right = torch.linalg.solve(left.mT @ Y @ left, left.mT @ Y @ case.delta_weight)
    found = cost(case.delta_weight, left @ right, X, Y)
    assert cost(case.delta_weight, case.cut(rank), X, Y) <= found * (1 + 1e-9)


@pytest.mark.parametrize("rank", range(1, 6))
def test_the_cut_never_costs_more_than_the_plain_one_and_mostly_far_less(rank):
    shares = []
    for seed in range(10):
        case = Case(seed, *SHAPES[0])
        for damping in (1e-10, DAMPING):
            X, Y = case.damped(damping)
            plain = cost(case.delta_weight, case.plain_cut(rank), X, Y)
            shares.append(cost(case.delta_weight, case.cut(rank, damping), X, Y) / plain)
    assert max(shares) <= 1 + 1e-9
    assert np.median(shares) < 0.8


def test_half_the_squares_beyond_the_rank_are_the_cost_up_to_the_metrics_means():
    case = Case(0, *SHAPES[1])
    X, Y = case.damped(DAMPING)
    values = loss_values(case.S, case.left, case.right)
    assert (values.diff() <= 0).all()
    weights = case.S / case.S.sum()
    unit = (weights * case.left.diagonal()).sum() * (weights * case.right.diagonal()).sum()
    for rank in range(1, 8):
        predicted = float(unit * (values[rank:] ** 2).sum() / 2)
        assert cost(case.delta_weight, case.cut(rank), X, Y) == pytest.approx(predicted, rel=1e-8)


def test_the_cuts_are_nested_over_the_rank():
    case = Case(1, *SHAPES[0])
    P_all, Q_all = loss_truncation(case.S, case.left, case.right, 6)
    for rank in range(1, 6):
        P, Q = loss_truncation(case.S, case.left, case.right, rank)
        assert_equal(P_all[:, :rank] @ Q_all[:rank], P @ Q)


def test_nothing_is_lost_at_the_full_rank():
    case = Case(2, *SHAPES[0])
    assert_equal(case.cut(6), case.delta_weight)


@pytest.mark.parametrize("factor", [1e-12, 3.0, 1e12])
def test_a_constant_factor_of_the_gradient_or_of_the_input_changes_nothing(factor):
    case = Case(3, *SHAPES[0])
    cut = case.cut(2)
    for left, right in ((factor, 1.0), (1.0, factor)):
        P, Q = loss_truncation(case.S, case.left * left, case.right * right, 2)
        assert_equal(case.U @ P @ Q @ case.Vh, cut)


def test_the_signs_of_the_singular_vectors_do_not_matter():
    case = Case(4, *SHAPES[0])
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64)
    flip = signs[:, None] * signs
    P, Q = loss_truncation(case.S, case.left * flip, case.right * flip, 2)
    assert_equal(signs[:, None] * (P @ Q) * signs, loss_product(case, 2))


def loss_product(case: Case, rank: int) -> torch.Tensor:
    P, Q = loss_truncation(case.S, case.left, case.right, rank)
    return P @ Q


def test_towards_infinite_damping_and_for_metrics_of_one_it_is_the_plain_svd():
    case = Case(5, *SHAPES[0])
    assert_equal(case.cut(3, damping=1e12), case.plain_cut(3))
    eye = torch.eye(6, dtype=torch.float64)
    P, Q = loss_truncation(case.S, 5 * eye, 0.1 * eye, 3)
    assert_equal(case.U @ P @ Q @ case.Vh, case.plain_cut(3))


@pytest.mark.parametrize("rank", [1, 4])
def test_a_batch_gives_what_its_members_give(rank):
    cases = [Case(seed, *SHAPES[0]) for seed in range(4)]
    S, left, right = (
        torch.stack([getattr(case, name) for case in cases]) for name in ("S", "left", "right")
    )
    left[1] = 0  # says nothing
    right[2] = moments(6, seed=3, samples=2) - 1e-3 * torch.eye(6, dtype=torch.float64)
    for damping in (1e-6, DAMPING):
        P, Q = loss_truncation(S, left, right, rank, damping)
        assert P.shape == (4, 6, rank)
        assert Q.shape == (4, rank, 6)
        values = loss_values(S, left, right, damping)
        for i in range(4):
            single = loss_truncation(S[i], left[i], right[i], rank, damping)
            assert_equal(P[i] @ Q[i], single[0] @ single[1])
            assert_equal(values[i], loss_values(S[i], left[i], right[i], damping))


def test_batches_may_have_several_axes():
    case = Case(0, *SHAPES[0])
    S, left, right = (
        tensor.expand(2, 3, *tensor.shape) for tensor in (case.S, case.left, case.right)
    )
    P, Q = loss_truncation(S, left, right, 2)
    assert_equal((P @ Q)[1, 2], loss_product(case, 2))


def test_float32_moments_give_the_float64_cut_to_their_precision():
    case = Case(6, *SHAPES[0])
    P, Q = loss_truncation(case.S.float(), case.left.float(), case.right.float(), 3)
    assert P.dtype == Q.dtype == torch.float64
    assert_equal(P @ Q, loss_product(case, 3), share=1e-5)
    assert loss_values(case.S.float(), case.left.float(), case.right.float()).dtype == torch.float64


def test_moments_of_fewer_samples_than_the_rank_leave_their_null_space_to_the_damping():
    case = Case(7, *SHAPES[0])
    case.X = moments(14, seed=8, samples=3)
    case.right = case.Vh @ case.X @ case.Vh.mT
    assert np.linalg.matrix_rank(case.right.numpy()) == 3
    X, Y = case.damped(DAMPING)
    assert_equal(case.cut(2), best_in_full_space(case.delta_weight, X, Y, 2)[0])
    undamped = cost(case.delta_weight, case.cut(3, damping=1e-12), case.X, case.Y)
    whole = cost(case.delta_weight, torch.zeros_like(case.delta_weight), case.X, case.Y)
    assert undamped < 1e-6 * whole  # rank 3 holds all that three input directions can show


@pytest.mark.parametrize("damping", [1e-14, DAMPING])
def test_directions_that_no_input_uses_are_given_up(damping):
    case = Case(8, *SHAPES[0])
    case.right[:2], case.right[:, :2] = 0, 0
    P, Q = loss_truncation(case.S, case.left, case.right, 4, damping)
    assert P.isfinite().all()
    assert Q.isfinite().all()
    core, plain = case.S.diag(), (case.S * (torch.arange(6) < 4)).diag()
    lost = cost(core, P @ Q, case.right, case.left)
    assert lost < 0.5 * cost(core, plain, case.right, case.left)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_metric_of_zeros_says_nothing_about_its_side(side):
    case = Case(9, *SHAPES[0])
    eye = torch.eye(6, dtype=torch.float64)
    zeros, ones = (
        {name: value for name in ("left", "right") if side in (name, "both")} for value in (0, eye)
    )
    given = {"left": case.left, "right": case.right}
    zeroed = given | {name: torch.zeros_like(eye) for name in zeros}
    cut = loss_truncation(case.S, zeroed["left"], zeroed["right"], 2)
    expected = loss_truncation(case.S, *(given | ones).values(), 2)
    assert_equal(cut[0] @ cut[1], expected[0] @ expected[1])


@pytest.mark.parametrize("damping", [1e-14, 1e-6, DAMPING])
def test_slightly_negative_eigenvalues_are_taken_for_zero(damping):
    case = Case(10, *SHAPES[0])
    Q = torch.linalg.qr(normal(6, 6, seed=1)).Q
    values = torch.tensor([3.0, 2, 1, 0.5, 0, 0], dtype=torch.float64)
    noise = torch.tensor([0, 0, 0, 0, -3e-8, -1e-8], dtype=torch.float64)
    clean, indefinite = (Q * values) @ Q.mT, (Q * (values + noise)) @ Q.mT
    cut = loss_truncation(case.S, case.left, indefinite, 2, damping)
    best = loss_truncation(case.S, case.left, clean, 2, damping)
    difference = [case.S.diag() - P @ Q for P, Q in (cut, best)]
    costs = [float((D.mT @ case.left @ D @ clean).trace()) for D in difference]
    assert costs[0] == pytest.approx(costs[1], rel=1e-4)


def test_a_metric_that_is_not_quite_symmetric_counts_as_its_symmetric_part():
    case = Case(11, *SHAPES[0])
    skew = 0.05 * normal(6, 6, seed=2)
    P, Q = loss_truncation(case.S, case.left + skew - skew.mT, case.right, 2)
    assert_equal(P @ Q, loss_product(case, 2))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_an_update_of_lower_rank_is_cut_to_what_it_has(rank):
    case = Case(12, *SHAPES[0])
    S = case.S * (torch.arange(6) < 3)
    P, Q = loss_truncation(S, case.left, case.right, rank)
    assert P.isfinite().all()
    assert Q.isfinite().all()
    assert (loss_values(S, case.left, case.right)[3:] < NEARLY_ZERO).all()
    if rank >= 3:
        assert_equal(P @ Q, S.diag())


def test_an_update_of_zero_is_cut_to_zero():
    case, zero = Case(13, *SHAPES[0]), torch.zeros(6)
    P, Q = loss_truncation(zero, case.left.float(), case.right.float(), 2)
    assert not P.any()
    assert not Q.any()
    assert not loss_values(zero, case.left.float(), case.right.float()).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "`rank` must be an integer >= 1, got 0"),
        ({"rank": 7}, "`rank` must be an integer <= 6, got 7"),
        ({"damping": 0.0}, "`damping` must be finite and > 0, got 0.0"),
        ({"damping": -0.01}, "`damping` must be finite and > 0, got -0.01"),
        ({"damping": float("inf")}, "`damping` must be finite and > 0, got inf"),
        ({"left_metric": float("nan")}, "`left_metric` must be finite, got 36 NaN or infinite"),
        ({"right_metric": float("inf")}, "`right_metric` must be finite, got 36 NaN or infinite"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    case = Case(0, *SHAPES[0])
    arguments = {"left_metric": case.left, "right_metric": case.right, "rank": 2}
    changes = {
        name: torch.full((6, 6), value) if name.endswith("metric") else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        loss_truncation(S=case.S, **arguments | changes)
    if "rank" not in changes:
        del arguments["rank"]
        with pytest.raises(ValueError, match=message):
            loss_values(S=case.S, **arguments | changes)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(truncation).failed == 0
