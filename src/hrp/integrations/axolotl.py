"""Plugs HRP into axolotl: ``plugins: [hrp.integrations.axolotl.HRPPlugin]`` in its YAML.

Imported by axolotl only; it needs axolotl and pydantic.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found]
from pydantic import BaseModel, field_validator

from hrp.config import HRPConfig
from hrp.integrations.callback import HRPCallback


class HRPArgs(BaseModel):
    """Holds what the plug-in adds to axolotl's YAML: fields of HRPConfig below ``hrp:``."""

    hrp: dict[str, Any] | None = None

    @field_validator("hrp")
    @classmethod
    def _check(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        HRPConfig.from_dict(settings or {})
        return settings


class HRPPlugin(BasePlugin):
    """Preheats with the trainer that axolotl has built, as its run begins."""

    def get_input_args(self) -> str:
        """Return the name of the class that checks our part of the YAML."""
        return "hrp.integrations.axolotl.HRPArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Add the callback; ``cfg.hrp`` holds fields of the HRPConfig.

        Raises:
            ValueError: a field is unknown or out of range; the message names it.
        """
        trainer.add_callback(HRPCallback(HRPConfig.from_dict(cfg.hrp or {}), trainer))
