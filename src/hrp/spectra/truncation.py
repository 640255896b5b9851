"""Cuts an update to a lower rank so that the loss rises least, not so that the matrix moves least.

Let ``U diag(S) Vh`` be the update, ``right_metric = E[v v^T]`` the second moment of ``v = Vh x``
over inputs x, and ``left_metric = E[u u^T]`` that of ``u = U^T dL/dy`` over output gradients. In
the Kronecker-factored approximation of the Fisher matrix, putting ``U K Vh`` in the update's place
raises the loss by ``1/2 || left_metric^(1/2) (diag(S) - K) right_metric^(1/2) ||_F^2``.
With Cholesky factors ``left_metric = L_u L_u^T`` and ``right_metric = L_v L_v^T`` the best K of
rank r is ``L_u^-T [L_u^T diag(S) L_v]_r L_v^-1``, where ``[.]_r`` is the plain truncated SVD (derived,
docs/theory.md, P11). It is the best over all matrices of rank r in the full space too, and the
optima are nested: the leading r triples of one SVD serve every r.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.validation import check_integer, check_positive

DAMPING = 0.01
"""Default share of the metric's mean that is added: 0.01 and 0.1 did alike, 1 a little worse."""

_SMALLEST_SHARE = 1e-12


def loss_truncation(
    S: Float[Tensor, "*batch R"],
    left_metric: Float[Tensor, "*batch R R"],
    right_metric: Float[Tensor, "*batch R R"],
    rank: int,
    damping: float = DAMPING,
) -> tuple[Float[Tensor, "*batch R rank"], Float[Tensor, "*batch rank R"]]:
    """Return ``P`` and ``Q`` with ``K = P @ Q`` the best core of rank ``rank``, in float64.

    The truncated update is ``U @ P @ Q @ Vh``. A constant factor of the loss or of its gradient
    does not change K.

    Args:
        S: singular values of the update, descending.
        left_metric: second moments of ``U^T dL/dy``, symmetric and positive semi-definite.
        right_metric: second moments of ``Vh x``, likewise.
        rank: r, at most R.
        damping: share of the metric's mean that is added to its diagonal, the mean taken with
            weights S; towards infinity K becomes the plain truncated SVD.

    Raises:
        ValueError: ``rank`` is not in 1..R, or ``damping`` not above 0.

    >>> one = torch.eye(2, dtype=torch.float64)
    >>> P, Q = loss_truncation(torch.tensor([2.0, 1.0]), one, one * 9, rank=1)
    >>> (P @ Q).round(decimals=6).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    check_integer("rank", rank, minimum=1, maximum=S.shape[-1])
    L_u, L_v = _metric_factors(S, left_metric, right_metric, damping)
    X, values, Yh = torch.linalg.svd(_core(S, L_u, L_v), full_matrices=False)
    roots = values[..., :rank].sqrt()
    P = torch.linalg.solve_triangular(L_u.mT, X[..., :rank] * roots[..., None, :], upper=True)
    Q = torch.linalg.solve_triangular(
        L_v, roots[..., :, None] * Yh[..., :rank, :], upper=False, left=False
    )
    return P, Q


def loss_values(
    S: Float[Tensor, "*batch R"],
    left_metric: Float[Tensor, "*batch R R"],
    right_metric: Float[Tensor, "*batch R R"],
    damping: float = DAMPING,
) -> Float[Tensor, "*batch R"]:
    """Singular values of the update in the metric of the loss, descending, in float64.

    Half the sum of the squares beyond the first r is the (damped, approximate) rise of the loss
    when the update is cut to rank r by `loss_truncation`.
    """
    L_u, L_v = _metric_factors(S, left_metric, right_metric, damping)
    return torch.linalg.svdvals(_core(S, L_u, L_v))


def _core(S: Tensor, L_u: Tensor, L_v: Tensor) -> Tensor:
    return L_u.mT @ (S.double()[..., :, None] * L_v)


def _metric_factors(
    S: Tensor, left_metric: Tensor, right_metric: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    check_positive("damping", damping)
    weights = S.double() / S.double().sum(-1, keepdim=True).clamp(min=torch.finfo(S.dtype).tiny)
    return (
        _cholesky(left_metric.double(), weights, damping),
        _cholesky(right_metric.double(), weights, damping),
    )


def _cholesky(metric: Tensor, weights: Tensor, damping: float) -> Tensor:
    """Lower factor of the damped metric, scaled to a weighted mean of 1.

    Rounding can leave a metric of second moments slightly indefinite: eigenvalues below zero are
    taken as zero before damping, so that the factor always exists.
    """
    metric = (metric + metric.mT) / 2
    mean = (metric.diagonal(dim1=-2, dim2=-1) * weights).sum(-1)[..., None, None]
    eye = torch.eye(metric.shape[-1], dtype=metric.dtype, device=metric.device)
    scaled = torch.where(mean > 0, metric / mean.clamp(min=torch.finfo(mean.dtype).tiny), eye)
    factor, info = torch.linalg.cholesky_ex(scaled + damping * eye)
    if bool((info != 0).any()):
        values, vectors = torch.linalg.eigh(scaled)
        floor = values.clamp(min=0).amax(-1, keepdim=True) * _SMALLEST_SHARE
        positive = (vectors * torch.maximum(values, floor)[..., None, :]) @ vectors.mT
        factor = torch.linalg.cholesky(positive + damping * eye)
    return factor
