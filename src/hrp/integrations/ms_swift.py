"""Plugs HRP into ms-swift: ``swift sft --external_plugins FILE --callbacks hrp``.

FILE holds ``from hrp.integrations.ms_swift import register`` and ``register()``.
"""

from __future__ import annotations

from typing import Any

from hrp.config import HRPConfig
from hrp.integrations.callback import HRPCallback


def register(**settings: Any) -> None:
    """Make ``--callbacks hrp`` known to ms-swift; ``settings`` are fields of the HRPConfig.

    Raises:
        ValueError: a field is unknown or out of range; the message names it.
    """
    from swift.callbacks import callbacks_map  # type: ignore[import-not-found]

    config = HRPConfig.from_dict(settings)

    def callback(args: Any, trainer: Any) -> HRPCallback:
        return HRPCallback(config, trainer)

    callbacks_map["hrp"] = callback
