"""HRP, High-Rank Preheating (arXiv 2502.07739), gives LoRA a better start, on PEFT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrp.adapters.freezing import freeze_factor
    from hrp.config import HRPConfig
    from hrp.errors import NonFiniteLossError, PreheatingError, SpectrumFormatError
    from hrp.initialization import apply_hrp, initialize_lora_hrp_weights
    from hrp.integrations.callback import HRPCallback
    from hrp.preheating.pipeline import preheat
    from hrp.spectra.module_spectrum import ModuleSpectrum
    from hrp.spectra.spectrum import Spectrum

    __version__: str

__all__ = [
    "HRPCallback",
    "HRPConfig",
    "ModuleSpectrum",
    "NonFiniteLossError",
    "PreheatingError",
    "Spectrum",
    "SpectrumFormatError",
    "apply_hrp",
    "freeze_factor",
    "initialize_lora_hrp_weights",
    "preheat",
]

# Imported on first use, so that the theory and `hrp --help` load neither PEFT nor transformers.
_HOMES = {
    "HRPCallback": "integrations.callback",
    "HRPConfig": "config",
    "ModuleSpectrum": "spectra.module_spectrum",
    "NonFiniteLossError": "errors",
    "PreheatingError": "errors",
    "Spectrum": "spectra.spectrum",
    "SpectrumFormatError": "errors",
    "apply_hrp": "initialization",
    "freeze_factor": "adapters.freezing",
    "initialize_lora_hrp_weights": "initialization",
    "preheat": "preheating.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, or look up ``__version__``."""
    if name == "__version__":
        return importlib.import_module("hrp.versions").own_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'hrp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hrp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
