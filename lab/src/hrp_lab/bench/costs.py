"""Say what a run costs, and by which FLOP formulas starts are charged.

The convention is that of Kaplan et al. (2020, arXiv 2001.08361, section 2.1) and PaLM (2022,
arXiv 2204.02311, appendix B): a multiply-add is two FLOPs, only matrix products count, and a
matrix of n entries costs 2n FLOPs per token in each of

- the forward pass,
- the backward pass with respect to its input (activations),
- the backward pass with respect to the matrix itself, only where it is trained.

So full fine-tuning costs 6N per token, and LoRA on a frozen base 4N + 6P with P adapter parameters
(4P + 2 P_trained where a factor is frozen): LoRA saves memory, but only a third of the FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hrp.validation import check_positive, is_finite


@dataclass(frozen=True)
class Costs:
    """Holds what a run used, from the first forward pass of its start to the end of fine-tuning.

    Args:
        charged_steps: what the start is charged, in fine-tuning steps: those of preheating, and
            passes for gradients or covariances by `equivalent_steps`. 0 for an oracle, whose start
            is not part of the comparison.
        tokens: processed in all, padding left out, the start included.
        flops: in all, by this module's formulas, the start included.
        wall_s: seconds, the start included, loading and evaluation left out.
        extra_parameters: trainable parameters held at the peak beyond the plain adapter's.
    """

    preheat_steps: int = 0
    finetune_steps: int = 0
    charged_steps: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0
    extra_parameters: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and is_finite(value) and value >= 0):
                raise ValueError(f"`{name}` must be finite and >= 0, got {value!r}")

    @property
    def total_steps(self) -> float:
        """Return fine-tuning steps and charged steps together."""
        return self.finetune_steps + self.charged_steps

    @property
    def tokens_per_second(self) -> float:
        """Return the throughput, 0 where no time was measured."""
        return self.tokens / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True)
class ModelSize:
    """Tells the formulas what they need to know of the base model.

    Args:
        matmul_parameters: N, entries of all weight matrices that multiply each token: linear
            layers and the output head, embedding look-ups left out.
        num_layers: attention layers; 0 leaves the attention term out.
        hidden_size: width over which attention scores and values are summed.
        sequence_length: tokens that each token attends to; no saving for causal masks is assumed.
    """

    matmul_parameters: int
    num_layers: int = 0
    hidden_size: int = 0
    sequence_length: int = 0

    @property
    def forward_per_token(self) -> float:
        """Return 2N + 4 num_layers hidden_size sequence_length (scores, then weighted values).

        >>> ModelSize(100, num_layers=2, hidden_size=8, sequence_length=16).forward_per_token
        1224.0
        """
        attention = 4 * self.num_layers * self.hidden_size * self.sequence_length
        return 2.0 * self.matmul_parameters + attention

    @property
    def frozen_per_token(self) -> float:
        """Return 4N and attention threefold: both passes through weights that stay as they are."""
        return 3 * self.forward_per_token - 2 * self.matmul_parameters


def lora_parameters(rank: int, shapes: Iterable[tuple[int, int]]) -> int:
    """Count the entries of ``lora_A`` and ``lora_B`` over modules of the shapes (d_out, d_in).

    A rank above a module's smaller side is cut to it, as preheating does.

    >>> lora_parameters(4, [(10, 20), (3, 5)])
    144
    """
    return sum(min(rank, *shape) * sum(shape) for shape in shapes)


def forward_flops(model: ModelSize, tokens: int) -> float:
    """Return the FLOPs of a pass of the base without gradients: 2N per token, and attention."""
    return tokens * model.forward_per_token


def lora_flops(
    model: ModelSize, tokens: int, adapter_parameters: int, trained_parameters: int | None = None
) -> float:
    """Return the FLOPs of training a LoRA: 4N + 4P + 2 P_trained per token, attention threefold.

    ``trained_parameters`` is all of ``adapter_parameters`` unless a factor is frozen.

    >>> lora_flops(ModelSize(1000), tokens=1, adapter_parameters=50)
    4300.0
    """
    trained = adapter_parameters if trained_parameters is None else trained_parameters
    return tokens * (model.frozen_per_token + 4.0 * adapter_parameters + 2 * trained)


def full_finetuning_flops(model: ModelSize, tokens: int) -> float:
    """Return the FLOPs of full fine-tuning: 6N per token, and attention threefold."""
    return tokens * 3 * model.forward_per_token


def gradient_flops(model: ModelSize, tokens: int, target_parameters: int) -> float:
    """Return the FLOPs of a gradient for the frozen weights: 4N + 2 N_target per token.

    LoRA-GA and LoRA-One take it. ``target_parameters`` counts the entries of the adapted matrices.
    The SVD that follows is `svd_flops`, once a module.
    """
    return tokens * (model.frozen_per_token + 2.0 * target_parameters)


def covariance_flops(model: ModelSize, tokens: int, in_features: Iterable[int]) -> float:
    """Return the FLOPs of passes that sum ``x x^T`` at each module: 2N + sum 2 d_in^2 per token.

    CorDA takes these sums.

    >>> covariance_flops(ModelSize(1000), tokens=1, in_features=[10, 20])
    3000.0
    """
    return forward_flops(model, tokens) + 2.0 * tokens * sum(width**2 for width in in_features)


def svd_flops(rows: int, columns: int) -> float:
    """Return the FLOPs of a dense thin SVD (U, S and Vh): 6 m n^2 + 20 n^3 with m >= n.

    Golub and Van Loan, Matrix Computations, 4th ed., figure 8.6.1 (R-SVD).

    >>> svd_flops(10, 2) == svd_flops(2, 10) == 400
    True
    """
    n, m = sorted((rows, columns))
    return 6.0 * m * n**2 + 20.0 * n**3


def factored_svd_flops(d_out: int, d_in: int, rank: int) -> float:
    """Return the FLOPs of an SVD of ``lora_B @ lora_A``: 6 (d_out + d_in) R^2 + 26 R^3.

    Two thin QRs with explicit Q (4 d R^2 - 4/3 R^3 each), the core's product (2 R^3), its SVD
    (26 R^3 by `svd_flops`), and Q times its vectors (2 d R^2 each); 28 - 8/3 is rounded up to 26.
    """
    return 6.0 * (d_out + d_in) * rank**2 + 26.0 * rank**3


def equivalent_steps(flops: float, step_flops: float) -> int:
    """Return the whole fine-tuning steps that cost at least ``flops``: what a start is charged.

    Raises ``ValueError`` unless ``step_flops`` is finite and positive.

    >>> equivalent_steps(250.0, step_flops=100.0), equivalent_steps(0.0, step_flops=100.0)
    (3, 0)
    """
    check_positive("step_flops", step_flops)
    # A hair of tolerance: 3 steps' FLOPs, summed in floats, must not become 4.
    return math.ceil(flops / step_flops * (1 - 1e-12))
