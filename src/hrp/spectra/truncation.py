"""Cuts an update to a lower rank so that the loss rises least, not so that the matrix moves least.

Let ``U diag(S) Vh`` be the update, ``right_metric = E[v v^T]`` the second moment of ``v = Vh x``
over inputs x, and ``left_metric = E[u u^T]`` that of ``u = U^T dL/dy`` over output gradients. In
the Kronecker-factored approximation of the Fisher matrix, putting ``U K Vh`` in the update's place
raises the loss by ``1/2 || left_metric^(1/2) (diag(S) - K) right_metric^(1/2) ||_F^2``. With
Cholesky factors ``left_metric = L_u L_u^T`` and ``right_metric = L_v L_v^T`` the best K of rank r
is ``L_u^-T [L_u^T diag(S) L_v]_r L_v^-1``, where ``[.]_r`` is the plain truncated SVD. It is the
best over all matrices of rank r in the full space too, and the optima are nested: the leading r
triples of one SVD serve every r (derived in docs/theory.md, P11).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.validation import check_integer, check_positive

DAMPING = 0.01
"""Default share of a metric's mean that is added to it: 0.01 and 0.1 did alike, 1 a bit worse."""

_SMALLEST_SHARE = 1e-12
"""Least eigenvalue, as a share of the largest, where damping does not make up for rounding."""


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
            weights S; towards infinity K becomes the plain truncated SVD. A metric that is zero
            where S is not says nothing, and is taken as the identity.

    Raises:
        ValueError: ``rank`` is not in 1..R, ``damping`` not above 0, or a metric not finite.

    >>> S, eye = torch.tensor([2.0, 1.0]), torch.eye(2)
    >>> P, Q = loss_truncation(S, eye, torch.diag(torch.tensor([1.0, 100.0])), rank=1)
    >>> (P @ Q).abs().round(decimals=6).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    check_integer("rank", rank, minimum=1, maximum=S.shape[-1])
    L_u, L_v, core = _in_the_metric(S, left_metric, right_metric, damping)
    X, values, Yh = torch.linalg.svd(core, full_matrices=False)
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
    """Return the singular values of the update in the metric of the loss, descending, in float64.

    Half the sum of the squares beyond the first r is the (damped, approximate) rise of the loss
    when the update is cut to rank r by `loss_truncation`, in units in which each metric has a
    weighted mean of 1: compare ranks by shares of their sum of squares. Raises ``ValueError`` for
    ``damping`` not above 0 and for a metric that is not finite.

    >>> S, eye = torch.tensor([2.0, 1.0]), torch.eye(2)
    >>> loss_values(S, eye, 9 * eye, damping=3.0).round(decimals=6).tolist()
    [8.0, 4.0]
    """
    _, _, core = _in_the_metric(S, left_metric, right_metric, damping)
    return torch.linalg.svdvals(core)


def _in_the_metric(
    S: Tensor, left_metric: Tensor, right_metric: Tensor, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``L_u``, ``L_v`` and ``L_u^T diag(S) L_v``, in float64."""
    check_positive("damping", damping)
    S = S.double()
    weights = S / S.sum(-1, keepdim=True).clamp(min=torch.finfo(S.dtype).tiny)
    L_u = _cholesky("left_metric", left_metric.double(), weights, damping)
    L_v = _cholesky("right_metric", right_metric.double(), weights, damping)
    return L_u, L_v, L_u.mT @ (S[..., :, None] * L_v)


def _cholesky(name: str, metric: Tensor, weights: Tensor, damping: float) -> Tensor:
    """Return the lower factor of the damped metric, scaled to a weighted mean of 1.

    Rounding can leave a metric of second moments slightly indefinite. Where the damping does not
    make up for that, eigenvalues that are not positive are lifted to a tiny positive share of the
    largest, so that the factor always exists; the other members of a batch are left as they are.
    """
    if not bool(metric.isfinite().all()):
        raise ValueError(
            f"`{name}` must be finite, got {int((~metric.isfinite()).sum())} NaN or infinite "
            "entries; leave out the batches whose gradients overflowed"
        )
    metric = (metric + metric.mT) / 2
    mean = (metric.diagonal(dim1=-2, dim2=-1) * weights).sum(-1)[..., None, None]
    eye = torch.eye(metric.shape[-1], dtype=metric.dtype, device=metric.device)
    scaled = torch.where(mean > 0, metric / mean.clamp(min=torch.finfo(mean.dtype).tiny), eye)
    factor, info = torch.linalg.cholesky_ex(scaled + damping * eye)
    if bool((info != 0).any()):
        values, vectors = torch.linalg.eigh(scaled)
        floor = values[..., -1:].clamp(min=0) * _SMALLEST_SHARE
        lifted = (vectors * torch.maximum(values, floor)[..., None, :]) @ vectors.mT
        failed = (info != 0)[..., None, None]
        factor = torch.linalg.cholesky(torch.where(failed, lifted, scaled) + damping * eye)
    return factor
