"""Lay the tokens of all rows of a batch in one row, so that only attention sees padding.

Random batches of GSM8K are half padding, and all of a causal model but its attention works token by
token, so laying the rows end to end halves the work and changes no gradient. Sorting the *data* by
length would save as much, but changes which examples share a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from hrp_lab.bench.tasks import Example

IMPLEMENTATION = "hrp_padding_free"
_IGNORED = -100


def padding_free_batch(
    rows: list[Example], tokens_multiple: int = 1, longest_multiple: int = 1
) -> dict[str, Any]:
    """Lay ``input_ids`` and ``labels`` of ``rows`` end to end, in one row.

    ``places`` index tokens in rows padded to ``longest``, flattened. Where few shapes are wanted,
    tokens that nothing is learned from fill the batch up to a multiple of ``tokens_multiple``, and
    ``longest`` is one of ``longest_multiple``.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    longest = -(-max(lengths) // longest_multiple) * longest_multiple
    # No row's first token is predicted, least of all from the row before.
    labels = [label for row in rows for label in (_IGNORED, *row["labels"][1:])]
    places = [row * longest + i for row, length in enumerate(lengths) for i in range(length)]
    filled = -sum(lengths) % tokens_multiple
    fill = [0] * filled
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row["input_ids"]] + fill]),
        "labels": torch.tensor([labels + [_IGNORED] * filled]),
        "position_ids": torch.tensor([[i for n in lengths for i in range(n)] + fill]),
        # The filling is the first token of one row more.
        "places": torch.tensor(places + [len(rows) * longest] * filled),
        "rows": len(rows) + (tokens_multiple > 1),
        "longest": longest,
        "use_cache": False,
    }


@contextmanager
def padding_free(model: nn.Module) -> Iterator[None]:
    """Let the attention of ``model`` take what `padding_free_batch` makes, while this lasts."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise TypeError(f"padding-free batches need a transformers model, got {type(base)}")
    before = base.config._attn_implementation
    base.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens d"],
    key: Float[Tensor, "1 kv_heads tokens d"],
    value: Float[Tensor, "1 kv_heads tokens d"],
    attention_mask: None,
    *,
    places: Int[Tensor, " tokens"],
    rows: int,
    longest: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads d"], None]:
    """Compute causal attention within each row.

    Padding is on the right, where a causal mask keeps it from every token of the row.

    Raises:
        ValueError: a window shorter than the rows, or capped scores, which this has not.
    """
    if softcap is not None or (sliding_window or longest) < longest:
        raise ValueError(
            "`padding_free` knows plain causal attention only, and the model has a sliding window "
            "or capped scores; leave it out"
        )

    def padded(packed: Tensor) -> Tensor:
        heads, d = packed.shape[1], packed.shape[3]
        flat = packed.new_zeros(rows * longest, heads, d)
        flat = flat.index_copy(0, places, packed[0].transpose(0, 1))
        return flat.view(rows, longest, heads, d).transpose(1, 2)

    out = nn.functional.scaled_dot_product_attention(
        padded(query), padded(key), padded(value), dropout_p=dropout, is_causal=True,
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return _Packed.apply(out.transpose(1, 2).flatten(0, 1), places)[None], None


class _Packed(torch.autograd.Function):
    """Selects places that differ, so that the gradient needs no sum, which is slow on GPUs.

    Only the filling shares a place, and no gradient comes from there.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = padded.shape
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy(0, places, gradient), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)  # `attention` masks itself
