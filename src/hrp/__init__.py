"""High-Rank Preheating (HRP) for LoRA (arXiv 2502.07739): a better start, on PEFT."""

from hrp.config import HRPConfig
from hrp.errors import NonFiniteLossError, PreheatingError, SpectrumFormatError
from hrp.initialization import apply_hrp, initialize_lora_hrp_weights
from hrp.preheating import preheat
from hrp.spectrum import ModuleSpectrum, Spectrum

__all__ = [
    "HRPConfig",
    "ModuleSpectrum",
    "NonFiniteLossError",
    "PreheatingError",
    "Spectrum",
    "SpectrumFormatError",
    "apply_hrp",
    "initialize_lora_hrp_weights",
    "preheat",
]
