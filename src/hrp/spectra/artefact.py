"""Stores spectra in a folder: ``spectrum.safetensors``, a readable ``spectrum.json`` and, where
anything was trained beside the factors, ``kept.safetensors``.

No pickle anywhere. A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrp.errors import SpectrumFormatError
from hrp.files import check_replaceable, write_folder
from hrp.spectra.module_spectrum import ModuleSpectrum

TENSORS_FILE = "spectrum.safetensors"
PROVENANCE_FILE = "spectrum.json"
KEPT_FILE = "kept.safetensors"
FILES = (TENSORS_FILE, PROVENANCE_FILE, KEPT_FILE)
FORMAT = "hrp-spectrum"
FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # 1 had no metric and kept nothing
_PARTS = ("U", "S", "Vh")
_METRICS = ("left_metric", "right_metric")
_ORTHONORMAL_TOLERANCE = 1e-3


def save(
    folder: Path,
    modules: Mapping[str, ModuleSpectrum],
    provenance: Mapping[str, Any],
    kept: Mapping[str, Tensor],
    overwrite: bool = False,
) -> None:
    """Write ``modules``, ``provenance`` and what was ``kept`` into a new ``folder``, or nothing.

    Raises:
        FileExistsError: ``folder`` exists and ``overwrite`` is false, or it holds anything besides
            a spectrum's files.
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    if overwrite:
        check_replaceable(folder, FILES)
    write_folder(
        folder, lambda staging: _write_files(staging, modules, provenance, kept), overwrite
    )


def _write_files(
    folder: Path,
    modules: Mapping[str, ModuleSpectrum],
    provenance: Mapping[str, Any],
    kept: Mapping[str, Tensor],
) -> None:
    tensors = {
        f"{name}.{part}": getattr(module, part).detach().cpu().contiguous()
        for name, module in modules.items()
        for part in (*_PARTS, *(_METRICS if module.has_metric else ()))
    }
    if kept:
        stored = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
        save_file(stored, folder / KEPT_FILE, metadata={"format": FORMAT})
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": FORMAT})
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
    (folder / PROVENANCE_FILE).write_text(json.dumps(header, indent=2, allow_nan=False) + "\n")


def load(
    folder: Path,
) -> tuple[dict[str, ModuleSpectrum], dict[str, Any], dict[str, Tensor]]:
    """Read the modules, the provenance and what was kept in ``folder``, on the CPU.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        SpectrumFormatError: foreign, truncated or inconsistent content; the message says where.
    """
    header = _read_header(folder)
    tensors = _read_tensors(folder, TENSORS_FILE)
    expected = {
        f"{name}.{part}"
        for name, entry in header["modules"].items()
        for part in (*_PARTS, *(_METRICS if _has_metric(entry) else ()))
    }
    if set(tensors) != expected:
        differing = sorted(set(tensors) ^ expected)[:3]
        raise _bad(folder, f"its two files disagree on the tensors {differing}")
    modules = {
        name: _module(folder, name, entry, tensors) for name, entry in header["modules"].items()
    }
    kept = _read_tensors(folder, KEPT_FILE) if header.get("kept") else {}
    if sorted(kept) != header.get("kept", []):
        raise _bad(folder, f"{KEPT_FILE} does not hold what {PROVENANCE_FILE} says")
    return modules, header["provenance"], kept


def check_folder(folder: Path) -> None:
    """Raise ``FileNotFoundError`` unless ``folder`` has the files of a spectrum; reads none."""
    for needed in (folder / PROVENANCE_FILE, folder / TENSORS_FILE):
        if not needed.is_file():
            raise FileNotFoundError(
                f"'{folder}' is no spectrum folder: it has no {needed.name}; write one with "
                "`hrp preheat` or `Spectrum.save`"
            )


def _read_header(folder: Path) -> dict[str, Any]:
    check_folder(folder)
    path = folder / PROVENANCE_FILE
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(folder, f"{PROVENANCE_FILE} is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _bad(folder, f"{PROVENANCE_FILE} does not say format '{FORMAT}'")
    version = header.get("format_version")
    if version not in _READABLE_VERSIONS or isinstance(version, bool):
        raise _bad(folder, f"format_version must be one of {_READABLE_VERSIONS}, got {version!r}")
    modules, provenance = header.get("modules"), header.get("provenance")
    if not isinstance(modules, dict) or not modules or not isinstance(provenance, dict):
        raise _bad(folder, "`modules` and `provenance` must be JSON objects, `modules` not empty")
    return header


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / name, device="cpu")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _bad(folder, f"{name} is not a safetensors file ({error})") from error


def _has_metric(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("metric") is True


def _module(folder: Path, name: str, entry: Any, tensors: dict[str, Tensor]) -> ModuleSpectrum:
    U, S, Vh = (tensors[f"{name}.{part}"] for part in _PARTS)
    try:
        (d_out, d_in), rank, scaling = entry["shape"], entry["rank"], float(entry["scaling"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad(folder, f"module {name!r} lacks a valid shape, rank or scaling") from error
    shapes = [tuple(part.shape) for part in (U, S, Vh)]
    if shapes != [(d_out, rank), (rank,), (rank, d_in)] or not rank:
        raise _bad(folder, f"module {name!r}: tensors of shapes {shapes} are not as declared")
    if not math.isfinite(scaling) or {U.dtype, S.dtype, Vh.dtype} - {torch.float32, torch.float64}:
        raise _bad(folder, f"module {name!r}: dtypes must be float32 or float64, scaling finite")
    if not _is_svd(U, S, Vh):
        raise _bad(
            folder,
            f"module {name!r}: S must be finite, descending and non-negative, the columns of U and "
            "the rows of Vh orthonormal",
        )
    if not _has_metric(entry):
        return ModuleSpectrum(U, S, Vh, scaling)
    metrics = [tensors[f"{name}.{part}"] for part in _METRICS]
    if not all(_is_metric(metric, rank) for metric in metrics):
        raise _bad(
            folder,
            f"module {name!r}: a metric must be ({rank}, {rank}), float32 or float64, finite and "
            "with no negative number on its diagonal",
        )
    return ModuleSpectrum(U, S, Vh, scaling, *metrics)


def _is_metric(metric: Tensor, rank: int) -> bool:
    floats = metric.dtype in (torch.float32, torch.float64) and metric.shape == (rank, rank)
    return floats and bool(metric.isfinite().all() and (metric.diagonal() >= 0).all())


def _is_svd(U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    if not (S.isfinite().all() and (S >= 0).all() and (S.diff() <= 0).all()):
        return False
    identity = torch.eye(len(S), dtype=U.dtype)
    errors = [(gram - identity).abs().max() for gram in (U.mT @ U, (Vh @ Vh.mT).to(U))]
    return all(bool(error < _ORTHONORMAL_TOLERANCE) for error in errors)


def _bad(folder: Path, reason: str) -> SpectrumFormatError:
    return SpectrumFormatError(
        f"'{folder}' does not hold a readable spectrum: {reason}; preheat again to write a new one"
    )
