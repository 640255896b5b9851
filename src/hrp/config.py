"""Holds the settings of High-Rank Preheating as plain data, without importing torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hrp.validation import (
    check_choice,
    check_integer,
    check_positive,
    check_scale,
    check_share,
    check_steps,
)

Direction = Literal["A", "B", "AB"]
TrainFactors = Literal["both", "A", "B"]
Truncation = Literal["loss", "frobenius"]
PreheatSteps = int | float | Literal["auto"] | None

DEFAULT_SHARE = 0.2
"""Preheating takes this share of fine-tuning's steps, a sixth of both (why: lab/LOG.md)."""


@dataclass(frozen=True)
class HRPConfig:
    """Says how to preheat, and how to start the real LoRA from what preheating found.

    Args:
        preheat_rank: rank R of the temporary LoRA; at least the adapter's own rank. A module with
            ``min(d_in, d_out) < R`` is preheated at ``min(d_in, d_out)``.
        preheat_steps: optimizer steps K of preheating; a float in (0, 1) is a share of the
            trainer's own steps (``args``), ``None`` means `DEFAULT_SHARE` of them
            (`plan.CLASSIFIER_SHARE` for classifiers), or `with_dataloader.DEFAULT_STEPS` with a
            bare dataloader; ``"auto"`` stops as soon as the leading subspaces have settled
            (`hrp.preheating.stopping`), at ``max_preheat_steps`` at the latest.
        direction: what the adapter starts with (docs/method.md): ``"AB"`` (ours, the default by
            evidence: the preheated update, truncated, so no no-op at step 0), or its singular
            vectors in one factor: ``"A"`` (the paper's) or ``"B"`` (derived, P5).
        scale: norm of each row of ``lora_A`` ("A") or column of ``lora_B`` ("B") at the start.
            Has no meaning for "AB", whose scale is that of the preheated update.
        train_factors: factors trained in preheating; ``"A"`` or ``"B"`` freezes the other one
            at a random start (asymmetric LoRA).
        learning_rate: of preheating; ``None`` means the trainer's own times
            ``sqrt(r / preheat_rank)``, r being the adapter's rank, or
            `with_dataloader.DEFAULT_LEARNING_RATE` with a bare dataloader.
        seed: of the temporary adapter's start and of preheating's data order and dropout.
        max_preheat_steps: the most steps with ``preheat_steps="auto"``; no meaning otherwise.
        subspace_tolerance: with "auto", stop once the leading subspace of the median module turns
            by less than this (1 - the smallest principal cosine, in (0, 1]) over the window.
        subspace_window: with "auto", steps between two looks at the subspaces.
        truncation: how the preheated update is cut to the adapter's rank: ``"loss"``, in the metric
            of the loss (docs/theory.md, P11), or ``"frobenius"``, by the plain SVD.
        statistics_steps: last steps of preheating over which that metric is observed; all of them
            where there are fewer.
        keep: whether direction "AB" also keeps what preheating has trained beside the factors:
            heads, DoRA magnitudes, biases of ``lora_B``, token rows.
        warmup_share: share of preheating's steps, in [0, 1), over which its learning rate rises
            from 0, linearly; with "auto" a share of the first ``subspace_window`` steps. It saved
            preheating that was too hot on SST-2 (accuracy 0.65 to 0.81) and did no harm elsewhere.

    Raises:
        ValueError: a field is out of range; the message names it.

    >>> HRPConfig.from_json(HRPConfig(preheat_rank=64).to_json()).preheat_rank
    64
    """

    preheat_rank: int = 128
    preheat_steps: PreheatSteps = None
    direction: Direction = "AB"
    scale: float = 1.0
    train_factors: TrainFactors = "both"
    learning_rate: float | None = None
    seed: int = 0
    max_preheat_steps: int = 200
    subspace_tolerance: float = 0.05
    subspace_window: int = 10
    truncation: Truncation = "loss"
    statistics_steps: int = 8
    keep: bool = True
    warmup_share: float = 0.3

    def __post_init__(self) -> None:
        check_integer("preheat_rank", self.preheat_rank, minimum=1)
        check_steps(self.preheat_steps)
        check_integer("seed", self.seed, minimum=0, maximum=2**32 - 1)
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("train_factors", self.train_factors, get_args(TrainFactors))
        check_scale(self.scale, self.direction)
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        check_integer("max_preheat_steps", self.max_preheat_steps, minimum=1)
        check_integer("subspace_window", self.subspace_window, minimum=1)
        check_positive("subspace_tolerance", self.subspace_tolerance)
        check_choice("truncation", self.truncation, get_args(Truncation))
        check_integer("statistics_steps", self.statistics_steps, minimum=1)
        check_share("warmup_share", self.warmup_share)
        if self.preheat_steps == "auto" and self.max_preheat_steps < 2 * self.subspace_window:
            raise ValueError(
                "`max_preheat_steps` must be at least two windows of `subspace_window` "
                f"({2 * self.subspace_window}) with `preheat_steps` 'auto', got "
                f"{self.max_preheat_steps}: subspaces settle between two looks; raise it, or lower "
                "`subspace_window`"
            )

    @property
    def step_limit(self) -> int:
        """Return the most steps that preheating takes: ``preheat_steps`` unless "auto".

        Raises ``ValueError`` where they are a share of a run, see `of_run`.
        """
        if self.preheat_steps == "auto":
            return self.max_preheat_steps
        if isinstance(self.preheat_steps, int):
            return self.preheat_steps
        raise ValueError(
            f"`preheat_steps` must be a number of steps or 'auto' here, got {self.preheat_steps}: "
            "a share is one of a run's steps; `HRPConfig.of_run` takes their number"
        )

    @property
    def warmup_steps(self) -> int:
        """Return over how many whole steps preheating's learning rate rises; it begins at 0."""
        length = self.subspace_window if self.preheat_steps == "auto" else self.step_limit
        return int(self.warmup_share * length)

    @property
    def is_share(self) -> bool:
        """Return whether preheating's steps are a share of the run that it prepares."""
        return self.preheat_steps is None or isinstance(self.preheat_steps, float)

    def of_run(self, steps: int, default: float = DEFAULT_SHARE) -> HRPConfig:
        """Return the config for a run of so many optimizer steps: a share becomes a number.

        ``default`` is the share where ``preheat_steps`` is None.

        >>> HRPConfig(preheat_steps=0.1).of_run(930).preheat_steps
        93
        """
        if not self.is_share:
            return self
        share = self.preheat_steps if isinstance(self.preheat_steps, float) else default
        return dataclasses.replace(self, preheat_steps=max(1, round(share * steps)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON types."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as a JSON object, indented."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> HRPConfig:
        """Build a config from a dict; raises ``ValueError`` on a name that is not a field."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"the fields are {known}"
                raise ValueError(f"unknown field `{name}` of the HRPConfig; {hint}")
        return cls(**fields)

    @classmethod
    def from_json(cls, text: str) -> HRPConfig:
        """Undo `to_json`; raises ``ValueError`` where ``text`` is not a JSON object."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"an HRPConfig is a JSON object, got {type(fields).__name__}")
        return cls.from_dict(fields)
