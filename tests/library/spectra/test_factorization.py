"""Cholesky QR gives what Householder gives, and hands over where it cannot."""

from __future__ import annotations

import pytest
import torch

from helpers.factors import factors, sine
from hrp.spectra.factorization import cholesky_svd, factored_svd, householder_svd, one_thread


def conditioned(condition: float, seed: int = 0):
    """A batch of float32 factors whose lora_B has the given condition number."""
    lora_A, lora_B = factors(64, 48, 12, seed, batch=(3,))
    Q = torch.linalg.qr(lora_B).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), 12, dtype=torch.float64)
    mixing = torch.linalg.qr(factors(12, 12, 12, seed + 50)[0]).Q
    return (lora_A / 48**0.5).float(), (Q * values @ mixing).float()


def orthogonality(X) -> float:
    return (X.mT @ X - torch.eye(X.shape[-1])).abs().max().item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_cholesky_is_orthonormal_and_accurate_up_to_condition_1e4(condition, seed):
    lora_A, lora_B = conditioned(condition, seed)
    U, S, Vh = cholesky_svd(lora_A, 2.0 * lora_B)
    product = 2.0 * lora_B.double() @ lora_A.double()
    assert orthogonality(U) < 1e-5
    assert orthogonality(Vh.mT) < 1e-5
    assert ((U * S[:, None, :] @ Vh) - product).norm() < 1e-5 * product.norm()
    assert (S.diff() <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_cholesky_and_householder_agree_on_the_leading_subspace(seed):
    lora_A, lora_B = conditioned(10.0, seed)
    U, S, _ = cholesky_svd(lora_A, lora_B)
    U_reference, S_reference, _ = householder_svd(lora_A.double(), lora_B.double())
    assert torch.allclose(S.double(), S_reference, rtol=1e-5)
    for i in range(3):
        assert sine(U[i, :, :3].double(), U_reference[i, :, :3]) < 1e-4


@pytest.mark.parametrize("spoil", ["dependent", "zero", "all zero"])
def test_a_member_with_dependent_columns_falls_back_to_householder(spoil):
    lora_A, lora_B = conditioned(10.0)
    if spoil == "dependent":
        lora_B[1, :, 5] = lora_B[1, :, 2]
    elif spoil == "zero":
        lora_A[1, 7] = 0
    else:
        lora_B[1] = 0
    U, S, Vh = cholesky_svd(lora_A, lora_B)
    assert orthogonality(U) < 1e-5
    assert orthogonality(Vh.mT) < 1e-5
    assert torch.allclose(U * S[:, None, :] @ Vh, lora_B @ lora_A, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_gpu_batches_go_through_cholesky_and_agree_with_the_cpu(condition):
    lora_A, lora_B = conditioned(condition)
    U, S, Vh = (part.cpu() for part in factored_svd(lora_A.cuda(), lora_B.cuda()))
    assert orthogonality(U) < 1e-5
    assert orthogonality(Vh.mT) < 1e-5
    assert torch.allclose(S, factored_svd(lora_A, lora_B)[1], rtol=1e-4, atol=1e-7)


def test_one_thread_puts_the_number_of_threads_back():
    threads = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
