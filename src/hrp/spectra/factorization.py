"""Computes the SVD of ``lora_B @ lora_A`` from the factors alone, in two ways.

- Householder QR of each factor: always accurate; what runs on the CPU and in float64.
- Cholesky QR in float64: on a GPU far faster, because it is matrix products and batched kernels;
  accurate while the factors are not nearly dependent. Each result is checked, and a member of the
  batch that fails is done again by Householder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

SVD = tuple[
    Float[Tensor, "*batch d_out k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k d_in"]
]

ORTHOGONALITY_TOLERANCE = 1e-5
"""Largest allowed entry of ``|U^T U - I|`` and ``|Vh Vh^T - I|`` before Householder steps in."""


def factored_svd(
    lora_A: Float[Tensor, "*batch rank d_in"],
    lora_B: Float[Tensor, "*batch d_out rank"],
    scaling: float = 1.0,
) -> SVD:
    """Return the thin SVD of ``scaling * lora_B @ lora_A`` without ever forming the product.

    With ``lora_B = Q_B R_B`` and ``lora_A^T = Q_A R_A``, the SVD of the small core
    ``R_B R_A^T = U' S V'^T`` gives ``U = Q_B U'`` and ``V = Q_A V'``: O((d_out + d_in) R^2) time
    and O((d_out + d_in) R) memory (docs/method.md).

    Computed in float32 or better, or float64 when a factor is float64; on the device of the
    factors. ``k = min(rank, d_in, d_out)``; columns of ``U`` and rows of ``Vh`` are orthonormal
    even where the factors have dependent columns, ``S`` is descending and non-negative.

    >>> A = torch.tensor([[1.0, 0.0], [0.0, 2.0]]); B = torch.eye(2)
    >>> factored_svd(A, B, scaling=3.0)[1].tolist()
    [6.0, 3.0]
    """
    dtype = torch.promote_types(torch.promote_types(lora_A.dtype, lora_B.dtype), torch.float32)
    lora_A, lora_B = lora_A.to(dtype), scaling * lora_B.to(dtype)
    rank, batched = lora_A.shape[-2], lora_A.dim() == 3
    fits = rank <= min(lora_A.shape[-1], lora_B.shape[-2])
    if lora_A.is_cuda and batched and fits and dtype == torch.float32:
        return cholesky_svd(lora_A, lora_B)
    return householder_svd(lora_A, lora_B)


def householder_svd(
    lora_A: Float[Tensor, "*batch rank d_in"], lora_B: Float[Tensor, "*batch d_out rank"]
) -> SVD:
    """Compute `factored_svd` by Householder QR of both factors, in their dtype."""
    Q_B, R_B = torch.linalg.qr(lora_B)
    Q_A, R_A = torch.linalg.qr(lora_A.mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.mT


def cholesky_svd(
    lora_A: Float[Tensor, "n rank d_in"], lora_B: Float[Tensor, "n d_out rank"]
) -> SVD:
    """Compute `factored_svd` of a float32 batch by Cholesky QR in float64, with a check each.

    The Gram matrix squares the condition number, which float64 has room for: factors conditioned
    up to 1e4 come out orthonormal to 1e-5. One host synchronisation, for the check.
    """
    R_A, failed_A = _triangle(lora_A.mT)
    R_B, failed_B = _triangle(lora_B)
    core = R_B @ R_A.mT
    # Dependent columns leave NaN in their triangle, on which the library SVD would raise.
    core = torch.where(core.isfinite(), core, 0.0)
    # cuSOLVER's batched driver is 100 times as fast here as an eigen-decomposition. It works on the
    # Gram matrix, which is why the result is checked.
    driver = "gesvda" if core.is_cuda else None
    U, S, Vh = torch.linalg.svd(core, full_matrices=False, driver=driver)
    U = (lora_B.double() @ torch.linalg.solve_triangular(R_B, U, upper=True)).float()
    V = (lora_A.mT.double() @ torch.linalg.solve_triangular(R_A, Vh.mT, upper=True)).float()
    result = U, S.float(), V.mT
    failed = failed_A | failed_B | ~(_is_orthonormal(U) & _is_orthonormal(V))
    again = failed.nonzero().flatten()
    if len(again):
        redone = householder_svd(lora_A[again], lora_B[again])
        for whole, part in zip(result, redone, strict=True):
            whole[again] = part
    return result


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, PyTorch works on one thread of the CPU.

    A small matrix gains nothing from several, and on a busy machine they wait for each other: a
    pseudo-inverse of 128 x 128 took 2 ms on one thread and 170 ms on two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _triangle(
    X: Float[Tensor, "n dim rank"],
) -> tuple[Float[Tensor, "n rank rank"], Tensor]:
    """Return the upper R of ``X = Q R`` in float64, and whether it could not be had, by member."""
    wide = X.double()
    lower, info = torch.linalg.cholesky_ex(wide.mT @ wide)
    return lower.mT, info != 0


def _is_orthonormal(X: Float[Tensor, "n dim rank"]) -> Tensor:
    identity = torch.eye(X.shape[-1], device=X.device)
    return (X.mT @ X - identity).abs().amax(dim=(1, 2)) < ORTHOGONALITY_TOLERANCE
