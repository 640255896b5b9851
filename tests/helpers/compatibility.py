"""Measures which start reaches which LoRA, for HRP and for PEFT's own initialisers.

python tests/helpers/compatibility.py docs/compatibility.md
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as pytest's `pythonpath` does
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from helpers.initialisers import EVA_BATCHES, STARTS, call
from helpers.variants import ADALORA, QUANTISED, VARIANTS, Variant

ROWS = VARIANTS | {"AdaLoRA": ADALORA} | QUANTISED
LIBRARIES = ("torch", "transformers", "peft", "torchao", "bitsandbytes")
SHOWN = 150  # characters of an error

HEAD = """# PEFT's variants, and who starts them

What became of each kind of LoRA under HRP (direction "A") and under PEFT's own initialisers, on
tiny models on the CPU with
{versions};
other versions may behave otherwise. Every cell was measured by one function, `outcome` in
`tests/helpers/compatibility.py`.
`python tests/helpers/compatibility.py docs/compatibility.md` writes this page (with the extras
`dev` and `quantised`), and the tests hold it to what they see.

- *started*: no factor pair is PEFT's default random start any more, and the model's output at
  step 0 is the base's, up to rounding;
- *base changed*: a weight of the base is another (of a quantised base: its output is), so the
  saved adapter alone does not fit the original base; *not a no-op*: the output at step 0 is
  another;
- **part: k of n**: the other modules have PEFT's default start, and nothing was raised;
- **silent default**: all of them have; where a warning named them, the cell says so;
- *refused*: a `ValueError`, `TypeError` or `NotImplementedError`; *fails*: any other error. The
  messages are below the table;
- n/a: the variant is itself an `init_lora_weights`, of which an adapter has only one.

CorDA and LoRA-GA read the targets before PEFT does; they are given the names of the modules (but
for the row `target_modules='all-linear'`), CorDA one row of data at a time, and EVA at most
{batches} batches. HRP refuses AdaLoRA because its `B diag(E) A` has no pair of factors to start,
and the forms of LoRA whose update is not `scaling * B A` alone; of these, KaSA changes the base by
itself, whatever starts its factors.

"""


@dataclass(frozen=True)
class Factors:
    """Hold the two factors of a module, and whether it is an embedding."""

    A: Tensor
    B: Tensor
    embedding: bool

    def are_default(self, reference: Factors) -> bool:
        """Tell whether they are what ``init_lora_weights=True`` makes, or zeros.

        That is: bit-equal to the default under the same seed; or, as other draws may have come
        before, lora_B = 0 and every entry of lora_A within Kaiming's bound 1 / sqrt(d_in). Rows
        of norm 1 cannot be within it (unless all entries are equal), so no direction is mistaken.
        An embedding's default is lora_A = 0.
        """
        same = [
            one.shape == other.shape and torch.equal(one, other)
            for one, other in ((self.A, reference.A), (self.B, reference.B))
        ]
        if all(same) or (self.embedding and not self.A.any()):
            return True
        bound = self.A[0].numel() ** -0.5 * (1 + 2**-8)  # half precision rounds
        return not self.B.any() and bool(self.A.abs().max() <= bound)


def factors(model: PeftModel) -> dict[str, Factors]:
    """Return the factors of every LoRA layer, by the module's path in the base model."""
    by_path = {}
    for path, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            embedding = "default" in layer.lora_embedding_A
            A = (layer.lora_embedding_A if embedding else layer.lora_A)["default"]
            B = (layer.lora_embedding_B if embedding else layer.lora_B)["default"]
            pair = (getattr(one, "weight", one).detach() for one in (A, B))
            by_path[path] = Factors(*pair, embedding)
    return by_path


def output(model: torch.nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        result = call(model.eval(), batch)
    return getattr(result, "logits", result).double()


def far(one: Tensor, other: Tensor, variant: Variant) -> bool:
    """Tell whether two outputs differ by more than rounding, relative to their size."""
    tolerance = 1e-4 if variant.dtype is None else 4 * torch.finfo(variant.dtype).eps
    return not bool((one - other).norm() <= tolerance * other.norm())


def base_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return all weights by their names in the base model."""
    wrappers = {"base_layer", "original_module", "token_adapter"}
    return {
        ".".join(part for part in name.split(".") if part not in wrappers): weight
        for name, weight in model.state_dict().items()
    }


def base_changed(variant: Variant, model: PeftModel) -> bool:
    """Tell whether a weight of the base is another, or what a quantised base computes.

    The latter because a back end packs its weights otherwise as soon as the mode changes.
    """
    pristine, batch = variant.reference(), variant.data()[0][0]
    if variant.needs is None:
        now = base_weights(model.get_base_model())
        return any(not one.equal(now[name]) for name, one in base_weights(pristine).items())
    with model.disable_adapter():
        return far(output(model, batch), output(pristine, batch), variant)


@dataclass(frozen=True)
class Cell:
    """Hold the ``text`` for the table and the ``error``, if any, for the list below it."""

    text: str
    error: str = ""


def judged(variant: Variant, model: PeftModel, messages: Iterable[str]) -> Cell:
    """Return the cell of a start that raised nothing."""
    reference = factors(variant.model(init_lora_weights=True))
    started = factors(model)
    default = [name for name, pair in started.items() if pair.are_default(reference[name])]
    warned = ", with a warning" if any("were initialized with" in m for m in messages) else ""
    if len(default) == len(started):
        return Cell("default, with a warning" if warned else "**silent default**")
    part = f"**part: {len(started) - len(default)} of {len(started)}**"
    batch = variant.data()[0][0]
    base, now = output(variant.reference(), batch), output(model, batch)
    return Cell(
        (part if default else "started")
        + (", base changed" if base_changed(variant, model) else "")
        + (", not a no-op" if far(now, base, variant) else "")
        + warned
    )


def outcome(initialiser: str, variant: Variant) -> Cell:
    """Return what a start does on a variant, whichever of the columns it is."""
    if initialiser != "hrp" and "init_lora_weights" in variant.settings:
        return Cell("n/a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = STARTS[initialiser](variant)
            return judged(variant, model, [str(one.message) for one in caught])
        except Exception as error:  # whichever it is, it is the finding
            meant = isinstance(error, ValueError | TypeError | NotImplementedError)
            name, message = type(error).__name__, " ".join(str(error).split())
            message = message[:SHOWN] + ("..." if len(message) > SHOWN else "")
            return Cell("refused" if meant else "fails", f"{name}: {message}")


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def row(name: str) -> dict[str, Cell]:
    """Return the cells of a variant, by initialiser."""
    return {initialiser: outcome(initialiser, ROWS[name]) for initialiser in STARTS}


def messages(rows: dict[str, dict[str, Cell]]) -> str:
    """Return a line for each message of each initialiser, with the variants where it came."""
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, cells in rows.items():
        for initialiser, cell in cells.items():
            if cell.error:
                where[initialiser, cell.error].append(name)
    ordered = sorted(where.items(), key=lambda entry: list(STARTS).index(entry[0][0]))
    return "".join(f"- `{i}` on {'; '.join(on)}: `` {e} ``\n" for (i, e), on in ordered)


def page(rows: dict[str, dict[str, Cell]]) -> str:
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in LIBRARIES)
    head = HEAD.format(versions=versions, batches=EVA_BATCHES)
    table = line(["variant", *(f"`{name}`" for name in STARTS)])
    table += line(["---"] * (len(STARTS) + 1))
    for name, cells in rows.items():
        table += line([name, *(cell.text for cell in cells.values())])
    return f"{head}{table}\n## The messages\n\n{messages(rows)}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page({name: row(name) for name in ROWS}), encoding="utf-8")
