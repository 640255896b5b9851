"""Reads what a finished run left in its folder: losses, spectrum, cost, settings, answers.

Nothing here trusts a file: what cannot be read counts as not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hrp.spectra.artefact import PROVENANCE_FILE
from hrp.spectra.spectrum import Spectrum

RUN_RECORD, DEMO_RECORD, STATE = "hrp.json", "results.json", "trainer_state.json"
_SPECTRUM, _ADAPTER = "spectrum", "adapter"
_PREFIX = "base_model.model."
_LOOKED_FOR = (
    f"a spectrum ('{PROVENANCE_FILE}' here, as `hrp preheat` writes it, or in '{_SPECTRUM}'), the "
    f"losses of a training run ('{STATE}' here or in 'checkpoint-N', as `hrp sft`, `hrp finetune` "
    f"and HF's Trainer write it) and the record of `hrp demo` ('{DEMO_RECORD}')"
)


@dataclass(frozen=True)
class Curve:
    """Holds the losses of one training: those of preheating by step, then those of fine-tuning."""

    name: str
    preheating: tuple[float, ...] = ()
    fine_tuning: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """Holds what a run left.

    Args:
        spectrum: that the run made or was given; None where there is none.
        curves: at least one, unless there is a spectrum.
        settings: that the run was given, by name.
        lora_config: PEFT's config of the saved adapter.
        ranks: of the saved adapter, by module.
        costs: (what, of preheating, of fine-tuning), ready to be shown.
        arms: of the demo: one dict a run.
        samples: of the demo: questions with answers before and after.
    """

    spectrum: Spectrum | None
    curves: tuple[Curve, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora_config: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    costs: tuple[tuple[str, str, str], ...] = ()
    arms: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()


def read_run(folder: Path) -> RunFolder:
    """Read a folder of `hrp sft`, `finetune`, `preheat` or `demo`, or of HF's Trainer.

    Raises:
        ValueError: it holds nothing to show; the message says what was looked for.
        SpectrumFormatError: its spectrum is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder; name that of a run or of a spectrum")
    record, demo = _json(folder / RUN_RECORD), _json(folder / DEMO_RECORD)
    settings = _mapping(record.get("settings")) | _mapping(record.get("length"))
    settings |= _mapping(demo.get("config"))
    spectrum = _spectrum(folder, settings)
    if spectrum is not None:
        settings = _mapping(spectrum.provenance.get("settings")) | settings
    losses = () if spectrum is None else _numbers(spectrum.provenance.get("losses"))
    state = _state(folder)
    arms = _dicts(demo.get("runs"))
    saved = _mapping(demo.get("saved"))
    curves = tuple(_demo_curves(arms, saved, losses)) or _curves(losses, _logged(state))
    if spectrum is None and not curves:
        raise ValueError(f"'{folder}' holds nothing to show: looked for {_LOOKED_FOR}")
    adapter = folder / _ADAPTER if arms else folder
    return RunFolder(
        spectrum,
        curves,
        settings,
        _json(adapter / "adapter_config.json"),
        _ranks(adapter / "adapter_model.safetensors"),
        tuple(_costs(spectrum, state, record, arms, saved)),
        arms,
        _dicts(demo.get("samples")),
    )


def _spectrum(folder: Path, settings: Mapping[str, Any]) -> Spectrum | None:
    given = settings.get("spectrum")
    places = [folder, folder / _SPECTRUM, *([Path(given)] if isinstance(given, str) else [])]
    for place in places:
        if (place / PROVENANCE_FILE).is_file():
            return Spectrum.load(place)
    return None


def _state(folder: Path) -> dict[str, Any]:
    """Return the state of HF's Trainer at the end of the run, or at its last checkpoint."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    places = [folder, *sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True)]
    states = [state for place in places if (state := _json(place / STATE))]
    return next(filter(_logged, states), states[0] if states else {})


def _logged(state: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    rows = _dicts(state.get("log_history"))
    pairs = [(row.get("step"), _finite(row.get("loss"))) for row in rows]
    return tuple((s, loss) for s, loss in pairs if isinstance(s, int) and loss is not None)


def _curves(losses: tuple[float, ...], logged: tuple[tuple[int, float], ...]) -> tuple[Curve, ...]:
    return (Curve("", losses, logged),) if losses or logged else ()


def _demo_curves(
    arms: tuple[dict[str, Any], ...], saved: Mapping[str, Any], losses: tuple[float, ...]
) -> Iterator[Curve]:
    """Yield a curve an arm, on the seed of the saved run, whose preheating the spectrum is of."""
    for arm in arms:
        trained = _numbers(arm.get("losses"))
        if trained and arm.get("seed") == saved.get("seed"):
            preheated = losses if arm.get("preheat_steps") else ()
            yield Curve(str(arm.get("arm")), preheated, tuple(enumerate(trained, 1)))


def _costs(
    spectrum: Spectrum | None,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    arms: tuple[dict[str, Any], ...],
    saved: Mapping[str, Any],
) -> Iterator[tuple[str, str, str]]:
    """Yield steps, time, memory and other costs of preheating and of fine-tuning."""
    provenance = {} if spectrum is None else spectrum.provenance
    cost = _mapping(provenance.get("cost"))
    ran = next((a for a in arms if {k: a.get(k) for k in ("arm", "seed")} == dict(saved)), {})
    logged = _dicts(state.get("log_history"))
    seconds = next((row["train_runtime"] for row in logged if "train_runtime" in row), None)
    if _finite(ran.get("seconds")) is not None and _finite(cost.get("seconds")) is not None:
        seconds = ran["seconds"] - cost["seconds"]
    steps = ran.get("steps", state.get("global_step"))
    yield "optimizer steps", _text(provenance.get("steps")), _text(steps)
    yield "seconds", _text(cost.get("seconds")), _text(seconds)
    peaks = _text(cost.get("peak_memory_gib")), _text(record.get("peak_memory_gib"))
    yield "peak GPU memory, GiB", *peaks
    for name, value in cost.items():
        if name not in ("seconds", "peak_memory_gib"):
            yield str(name), _text(value), ""


def _ranks(weights: Path) -> dict[str, int]:
    """Read the rank of each module from the shapes in an adapter's file."""
    ranks = {}
    try:
        with safe_open(weights, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # not a dict
                module, mark, _ = key.partition(".lora_A.")
                if not mark:
                    module, mark, _ = key.partition(".lora_embedding_A")
                if mark:
                    ranks[module.removeprefix(_PREFIX)] = tensors.get_slice(key).get_shape()[0]
    except (OSError, SafetensorError):
        return {}
    return ranks


def _json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> tuple[dict[str, Any], ...]:
    return tuple(v for v in value if isinstance(v, dict)) if isinstance(value, list) else ()


def _numbers(value: object) -> tuple[float, ...]:
    """Return a list of numbers as floats, those that are none as NaN; else nothing."""
    if not isinstance(value, list):
        return ()
    return tuple(math.nan if (number := _finite(v)) is None else number for v in value)


def _finite(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "" if value is None else str(value)
