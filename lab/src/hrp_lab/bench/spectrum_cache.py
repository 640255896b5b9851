"""Keeps spectra that several runs start from in a cache folder, made once a task and seed.

Each comes with what it cost, so that every run that starts from it can be charged in full.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hrp.files import clear_dead_staging, write_folder
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.record import RunSpec

# A run's data, model and adapter depend on these, apart from its own settings.
_GROUND = ("model", "dtype", "batch_size", "task", "lora", "training")


@dataclass(frozen=True)
class Shared:
    """Hold a spectrum and what it cost; the losses are those of preheating, if any."""

    spectrum: Spectrum
    costs: Costs
    losses: tuple[float, ...] = ()


def get_shared(
    cache: Path,
    kind: str,
    spec: RunSpec,
    settings: Mapping[str, Any],
    make: Callable[[], Shared],
) -> Shared:
    """Read what all runs share that may start from it; make it first if nobody has.

    It is written whole or not at all. Other processes that need it wait meanwhile.
    """
    ground = {name: spec.config[name] for name in _GROUND}
    identity = json.dumps([spec.task, spec.seed, ground, dict(settings)], sort_keys=True)
    folder = cache / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with FileLock(lock):
        clear_dead_staging(folder)
        if not folder.exists():
            made = make()
            write_folder(folder, lambda staging: _write(made, staging))
        lock.unlink(missing_ok=True)  # who waits for it then finds the folder
    costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    losses = tuple(costs.pop("losses"))
    return Shared(Spectrum.load(folder / "spectrum"), Costs(**costs), losses)


def _write(made: Shared, folder: Path) -> None:
    made.spectrum.save(folder / "spectrum")
    costs = dataclasses.asdict(made.costs) | {"losses": made.losses}
    (folder / "costs.json").write_text(json.dumps(costs) + "\n", encoding="utf-8")
