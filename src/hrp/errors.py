"""Defines errors that are more than a wrong argument, a ``ValueError`` or ``TypeError``."""

from __future__ import annotations


class PreheatingError(RuntimeError):
    """Preheating could not be carried out; the model is as it was before."""


class NonFiniteLossError(PreheatingError, FloatingPointError):
    """The loss became NaN or infinite while preheating."""


class SpectrumFormatError(ValueError):
    """A folder does not hold a spectrum that this version can read."""
