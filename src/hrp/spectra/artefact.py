"""Stores spectra in a folder: ``spectrum.safetensors``, a readable ``spectrum.json`` and, where
anything was trained beside the factors, ``kept.safetensors``.

No pickle anywhere. A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrp.errors import SpectrumFormatError
from hrp.files import named, read_folder, read_object, write_folder
from hrp.spectra.module_spectrum import ModuleSpectrum

TENSORS_FILE = "spectrum.safetensors"
PROVENANCE_FILE = "spectrum.json"
KEPT_FILE = "kept.safetensors"
FILES = (TENSORS_FILE, PROVENANCE_FILE, KEPT_FILE)
FORMAT = "hrp-spectrum"
FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # 1 had no metric and kept nothing
_PARTS = ("U", "S", "Vh", "left_metric", "right_metric")
_LARGEST_HEADER = 1 << 26  # bytes of the JSON; 100,000 modules take a third of it
_DTYPES = (torch.float32, torch.float64)
_ORTHONORMAL_TOLERANCE = 1e-3
# What HRP writes into the provenance, where something reads it.
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("config", "cost", "settings", "stopping", "versions"), (dict, "an object")),
    **dict.fromkeys(("base_model", "run", "adapter_name"), (str, "text")),
    **dict.fromkeys(("steps", "seed", "learning_rate"), (int | float, "a number")),
    **dict.fromkeys(("losses", "unreached", "without_metric"), (list | tuple, "a list")),
}


def save(
    folder: Path,
    modules: Mapping[str, ModuleSpectrum],
    provenance: Mapping[str, Any],
    kept: Mapping[str, Tensor],
    overwrite: bool = False,
) -> None:
    """Write ``modules``, ``provenance`` and what was ``kept`` into a new ``folder``, or nothing.

    What was written is read once, as `load` does, before it is put in its place.

    Raises:
        ValueError, TypeError: it could not be read again; the message says what and where.
        FileExistsError: ``folder`` exists and ``overwrite`` is false, or it holds anything but a
            spectrum.
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "modules": {
            name: {
                "shape": list(module.shape),
                "rank": module.rank,
                "scaling": module.scaling,
                "metric": module.has_metric,
            }
            for name, module in modules.items()
        },
        "kept": sorted(kept),
        "provenance": dict(provenance),
    }
    tensors = {
        f"{name}.{part}": getattr(module, part)
        for name, module in modules.items()
        for part in _parts(module.has_metric)
    }

    def write(staging: Path) -> None:
        try:
            text = json.dumps(header, indent=2, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise type(error)(
                f"`provenance` must hold finite numbers, text, lists and dicts only ({error})"
            ) from error
        (staging / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")
        for name, content in ((TENSORS_FILE, tensors), (KEPT_FILE, kept)):
            if content:
                # They are copied, as safetensors refuses tensors that share memory.
                apart = {n: t.detach().cpu().contiguous().clone() for n, t in content.items()}
                save_file(apart, staging / name, metadata={"format": FORMAT})
        try:
            _load(staging)
        except SpectrumFormatError as error:
            raise ValueError(f"the spectrum could not be read again: {error}") from error

    if overwrite:
        read_folder(folder, _check_ours)
    write_folder(folder, write, overwrite, FILES)


def _check_ours(folder: Path) -> None:
    """Raise ``FileExistsError`` where the folder holds anything but a spectrum."""
    foreign = []
    for name in FILES:
        path = folder / name
        if (path.exists() or path.is_symlink()) and not (path.is_file() and _is_ours(path)):
            foreign.append(name)
    if foreign:
        raise FileExistsError(
            f"output folder '{folder}' holds {named(foreign)} that is not of a spectrum, and is "
            "not replaced; move it away, or choose another folder"
        )


def _is_ours(path: Path) -> bool:
    if path.name == PROVENANCE_FILE:
        return (read_object(path) or {}).get("format") == FORMAT
    with suppress(SafetensorError), safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT
    return False


def load(
    folder: Path,
) -> tuple[dict[str, ModuleSpectrum], dict[str, Any], dict[str, Tensor]]:
    """Read the modules, the provenance and what was kept in ``folder``, on the CPU.

    All of it is of one save, also where another process replaces it at this moment.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        SpectrumFormatError: foreign, truncated or inconsistent content; the message says where.
    """
    try:
        return read_folder(folder, _load)
    except SpectrumFormatError as error:
        raise SpectrumFormatError(
            f"'{folder}' does not hold a readable spectrum: {error}; preheat again to write a new "
            "one"
        ) from error.__cause__


def _load(folder: Path) -> tuple[dict[str, ModuleSpectrum], dict[str, Any], dict[str, Tensor]]:
    """Read a folder that is not replaced meanwhile; a fault is told without the folder's name."""
    header = _read_header(folder)
    tensors = _read_tensors(folder, TENSORS_FILE)
    expected = {
        f"{name}.{part}"
        for name, entry in header["modules"].items()
        for part in _parts(_has_metric(entry))
    }
    if set(tensors) != expected:
        differing = sorted(set(tensors) ^ expected)[:3]
        raise SpectrumFormatError(f"its two files disagree on the tensors {differing}")
    modules = {name: _module(name, entry, tensors) for name, entry in header["modules"].items()}
    kept = _read_tensors(folder, KEPT_FILE) if header.get("kept") else {}
    if sorted(kept) != header.get("kept", []):
        raise SpectrumFormatError(f"{KEPT_FILE} does not hold what {PROVENANCE_FILE} says")
    for name, value in kept.items():
        if not bool(value.isfinite().all()):
            raise SpectrumFormatError(f"{name!r} in {KEPT_FILE} must be finite")
    return modules, header["provenance"], kept


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the provenance of the spectrum in ``folder``; no tensor is read. Raises as `load`."""
    provenance: dict[str, Any] = read_folder(folder, _read_header)["provenance"]
    return provenance


def _read_header(folder: Path) -> dict[str, Any]:
    for needed in (folder / PROVENANCE_FILE, folder / TENSORS_FILE):
        if not needed.is_file():
            raise FileNotFoundError(
                f"'{folder}' is no spectrum folder: it has no {needed.name}; write one with "
                "`hrp preheat` or `Spectrum.save`"
            )
    path = folder / PROVENANCE_FILE
    if path.stat().st_size > _LARGEST_HEADER:
        raise SpectrumFormatError(f"{PROVENANCE_FILE} has more than {_LARGEST_HEADER} bytes")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpectrumFormatError(f"{PROVENANCE_FILE} is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise SpectrumFormatError(f"{PROVENANCE_FILE} does not say format '{FORMAT}'")
    version = header.get("format_version")
    if version not in _READABLE_VERSIONS or isinstance(version, bool):
        raise SpectrumFormatError(
            f"format_version must be one of {_READABLE_VERSIONS}, got {version!r}"
        )
    modules, provenance = header.get("modules"), header.get("provenance")
    if not isinstance(modules, dict) or not modules or not isinstance(provenance, dict):
        raise SpectrumFormatError(
            "`modules` and `provenance` must be JSON objects, `modules` not empty"
        )
    if odd := _fault_of_provenance(provenance):
        raise SpectrumFormatError(odd)
    return header


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    if not (folder / name).is_file():  # a pipe would be waited for
        raise SpectrumFormatError(f"it has no {name}")
    try:
        return load_file(folder / name, device="cpu")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SpectrumFormatError(f"{name} is not a safetensors file ({error})") from error


def _parts(with_metric: bool) -> tuple[str, ...]:
    return _PARTS if with_metric else _PARTS[:3]


def _has_metric(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("metric") is True


def _module(name: str, entry: Any, tensors: dict[str, Tensor]) -> ModuleSpectrum:
    U, S, Vh, *metrics = (tensors[f"{name}.{part}"] for part in _parts(_has_metric(entry)))
    try:
        (d_out, d_in), rank, scaling = entry["shape"], entry["rank"], float(entry["scaling"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SpectrumFormatError(
            f"module {name!r} lacks a valid shape, rank or scaling"
        ) from error
    shapes = [tuple(part.shape) for part in (U, S, Vh)]
    if shapes != [(d_out, rank), (rank,), (rank, d_in)]:
        raise SpectrumFormatError(
            f"module {name!r}: tensors of shapes {shapes} are not as declared"
        )
    if fault := _fault_of(U, S, Vh, scaling, *metrics):
        raise SpectrumFormatError(f"module {name!r}: {fault}")
    return ModuleSpectrum(U, S, Vh, scaling, *metrics)


def _fault_of(U: Tensor, S: Tensor, Vh: Tensor, scaling: float, *metrics: Tensor) -> str | None:
    """Return what keeps these from being a spectrum, in words; None where nothing does.

    U, S and Vh fit each other by now. The rank comes first, so that no product is larger than its
    factors.
    """
    parts, shapes = (U, S, Vh, *metrics), [tuple(metric.shape) for metric in metrics]
    rank, d_out, d_in = S.numel(), U.shape[0], Vh.shape[1]
    if not 1 <= rank <= min(d_out, d_in):
        return f"its rank must be from 1 to min(d_out, d_in) = {min(d_out, d_in)}, got {rank}"
    if shapes != [(rank, rank)] * len(metrics):
        return f"a metric must be ({rank}, {rank}), got {shapes}"
    if any(part.dtype not in _DTYPES for part in parts) or not math.isfinite(scaling):
        return "dtypes must be float32 or float64, scaling finite"
    if not _is_svd(U, S, Vh):
        return (
            "S must be finite, descending and non-negative, the columns of U and the rows of Vh "
            "orthonormal"
        )
    if not all(m.isfinite().all() and (m.diagonal() >= 0).all() for m in metrics):
        return "a metric must be finite, with no negative number on its diagonal"
    return None


def _is_svd(U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    if not (S.isfinite().all() and (S >= 0).all() and (S.diff() <= 0).all()):
        return False
    identity = torch.eye(len(S), dtype=U.dtype, device=U.device)
    errors = [(gram - identity).abs().max() for gram in (U.mT @ U, (Vh @ Vh.mT).to(U))]
    return all(bool(error < _ORTHONORMAL_TOLERANCE) for error in errors)


def _fault_of_provenance(provenance: Mapping[str, Any]) -> str | None:
    """Return what is of another kind than HRP writes, in words; None where nothing is."""
    for name, value in provenance.items():
        if name not in _KINDS or value is None:
            continue
        kind, said = _KINDS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"`{name}` of the provenance must be {said}, got {type(value).__name__}"
        entries = value if isinstance(value, list | tuple) else ()
        entry_kind = int | float if name == "losses" else str
        for entry in entries:
            if not isinstance(entry, entry_kind) or isinstance(entry, bool):
                return f"`{name}` of the provenance must not hold {type(entry).__name__}"
    return None
