"""Reads what a finished run left in its folder: losses, spectrum, cost, settings, answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hrp.errors import SpectrumFormatError
from hrp.files import read_object
from hrp.spectra.artefact import PROVENANCE_FILE
from hrp.spectra.spectrum import Spectrum

RUN_RECORD, DEMO_RECORD, STATE = "hrp.json", "results.json", "trainer_state.json"
_SPECTRUM, _ADAPTER = "spectrum", "adapter"
_PREFIX = "base_model.model."
_ARM_NUMBERS = ("test_loss", "exact", "seconds")
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
        ValueError: it holds nothing to show, or a record that none of them writes; the message
            says what was looked for.
        SpectrumFormatError: its spectrum is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder; name that of a run or of a spectrum")
    try:
        run = _read(folder)
    except SpectrumFormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"'{folder}' has a record of another form: looked for {_LOOKED_FOR}"
        ) from error
    if run.spectrum is None and not run.curves:
        raise ValueError(f"'{folder}' holds nothing to show: looked for {_LOOKED_FOR}")
    return run


def _read(folder: Path) -> RunFolder:
    record, demo = (read_object(folder / name) or {} for name in (RUN_RECORD, DEMO_RECORD))
    state = _state(folder)
    settings = record.get("settings", {}) | record.get("length", {}) | demo.get("config", {})
    places = [folder, folder / _SPECTRUM]
    if settings.get("spectrum"):
        places.append(Path(settings["spectrum"]))
    place = next((place for place in places if (place / PROVENANCE_FILE).is_file()), None)
    spectrum = None if place is None else Spectrum.load(place)
    provenance = {} if spectrum is None else spectrum.provenance
    arms = tuple(
        dict(arm) | {name: float(arm[name]) for name in _ARM_NUMBERS if name in arm}
        for arm in demo.get("runs", ())
    )
    adapter = folder / _ADAPTER if arms else folder
    return RunFolder(
        spectrum,
        tuple(_curves(tuple(provenance.get("losses") or ()), state, demo)),
        (provenance.get("settings") or {}) | settings,
        read_object(adapter / "adapter_config.json") or {},
        _ranks(adapter / "adapter_model.safetensors"),
        tuple(_costs(provenance, state, record, demo)),
        arms,
        tuple(map(dict, demo.get("samples", ()))),
    )


def _state(folder: Path) -> dict[str, Any]:
    """Return the state of HF's Trainer at the end of the run, or at its last checkpoint."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    places = [folder, *sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True)]
    states = [state for place in places if (state := read_object(place / STATE))]
    return next(filter(_logged, states), states[0] if states else {})


def _logged(state: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    rows = state.get("log_history", ())
    return tuple((int(row["step"]), float(row["loss"])) for row in rows if "loss" in row)


def _curves(
    losses: tuple[float, ...], state: Mapping[str, Any], demo: Mapping[str, Any]
) -> Iterator[Curve]:
    """Yield the run's curve; of a demo one an arm, on the seed that the spectrum is of."""
    for arm in demo.get("runs", ()):
        if arm["seed"] == demo["saved"]["seed"]:
            preheated = losses if arm["preheat_steps"] else ()
            yield Curve(str(arm["arm"]), preheated, tuple(enumerate(map(float, arm["losses"]), 1)))
    if "runs" not in demo and (losses or _logged(state)):
        yield Curve("", losses, _logged(state))


def _costs(
    provenance: Mapping[str, Any],
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    demo: Mapping[str, Any],
) -> Iterator[tuple[str, str, str]]:
    """Yield steps, time, memory and other costs of preheating and of fine-tuning."""
    cost = dict(provenance.get("cost") or {})
    steps = state.get("global_step")
    logged = state.get("log_history", ())
    seconds = next((row["train_runtime"] for row in logged if "train_runtime" in row), None)
    for arm in demo.get("runs", ()):
        if (arm["arm"], arm["seed"]) == (demo["saved"]["arm"], demo["saved"]["seed"]):
            steps = arm.get("steps")
            seconds = arm.get("seconds", 0) - cost.get("seconds", 0)
    yield "optimizer steps", _text(provenance.get("steps")), _text(steps)
    yield "seconds", _text(cost.pop("seconds", None)), _text(seconds)
    peaks = _text(cost.pop("peak_memory_gib", None)), _text(record.get("peak_memory_gib"))
    yield "peak GPU memory, GiB", *peaks
    for name, value in cost.items():
        yield name, _text(value), ""


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


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "" if value is None else str(value)
