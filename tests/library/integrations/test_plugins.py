"""Plug-ins hand the callback to their tools, tried on stand-ins of what the tools provide."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import BaseModel

import hrp
from helpers.built_trainers import SEED, losses, plain, seq2seq

SETTINGS = {"preheat_rank": 4, "preheat_steps": 2, "seed": SEED}


def module(monkeypatch, name, **names):
    made = ModuleType(name)
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def axolotl(monkeypatch):
    """Our plug-in, over a stand-in of axolotl's base class of plug-ins."""

    class BasePlugin:
        def get_input_args(self): ...

        def post_trainer_create(self, cfg, trainer): ...

    for name in ("axolotl", "axolotl.integrations"):
        module(monkeypatch, name)
    module(monkeypatch, "axolotl.integrations.base", BasePlugin=BasePlugin)
    monkeypatch.delitem(sys.modules, "hrp.integrations.axolotl", raising=False)
    yield importlib.import_module("hrp.integrations.axolotl")
    sys.modules.pop("hrp.integrations.axolotl", None)


def started(folder, build=plain):
    trainer = build(folder)
    hrp.apply_hrp(trainer, hrp.HRPConfig(**SETTINGS))
    trainer.train()
    return losses(trainer)


def test_axolotl_s_trainer_is_started_by_the_plug_in(axolotl, tmp_path):
    trainer = plain(tmp_path)
    axolotl.HRPPlugin().post_trainer_create(SimpleNamespace(hrp=SETTINGS), trainer)
    trainer.train()
    assert losses(trainer) == started(tmp_path)


def test_axolotl_finds_the_class_that_checks_our_part_of_its_yaml(axolotl):
    home, _, name = axolotl.HRPPlugin().get_input_args().rpartition(".")
    checked = getattr(importlib.import_module(home), name)

    class Base(BaseModel):
        adapter: str

    class Merged(Base, checked):  # as axolotl merges the classes of its plug-ins
        pass

    assert Merged(adapter="lora", hrp=SETTINGS).hrp == SETTINGS
    assert Merged(adapter="lora").hrp is None
    with pytest.raises(ValueError, match="unknown field `preheat_ranks` of the HRPConfig; did"):
        Merged(adapter="lora", hrp={"preheat_ranks": 8})
    with pytest.raises(ValueError, match="`preheat_rank` must be an integer >= 1, got 0"):
        Merged(adapter="lora", hrp={"preheat_rank": 0})
    with pytest.raises(ValueError, match=r"hrp\n  Input should be a valid dictionary"):
        Merged(adapter="lora", hrp="preheat_rank")


def test_ms_swift_makes_the_callback_with_its_trainer(monkeypatch, tmp_path):
    callbacks_map = {}
    module(monkeypatch, "swift")
    module(monkeypatch, "swift.callbacks", callbacks_map=callbacks_map)
    importlib.import_module("hrp.integrations.ms_swift").register(**SETTINGS)
    trainer = plain(tmp_path)
    trainer.add_callback(callbacks_map["hrp"](trainer.args, trainer))
    trainer.train()
    assert losses(trainer) == started(tmp_path)


def test_llama_factory_passes_callbacks_on_to_a_trainer(tmp_path):
    def run_exp(args, callbacks):
        trainer = seq2seq(args["output_dir"])
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return losses(trainer)

    callback = hrp.HRPCallback(hrp.HRPConfig(**SETTINGS))
    assert run_exp({"output_dir": tmp_path}, callbacks=[callback]) == started(tmp_path, seq2seq)


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"lr": 1e-4}, ValueError, "unknown field `lr` of the HRPConfig; the fields are"),
        ({"direktion": "A"}, ValueError, "did you mean `direction`"),
        ({1: 2}, ValueError, "unknown field `1`"),
        ({"direction": "C"}, ValueError, "`direction` must be one of"),
    ],
)
def test_settings_that_are_wrong_are_told_by_name(settings, error, told):
    with pytest.raises(error, match=told):
        hrp.HRPConfig.from_dict(settings)
