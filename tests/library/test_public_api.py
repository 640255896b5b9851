"""The public names, their signatures and the version."""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, version

import pytest

import hrp


def test_public_names_are_sorted_importable_and_documented():
    assert hrp.__all__ == sorted(hrp.__all__)
    assert dir(hrp) == hrp.__all__
    for name in hrp.__all__:
        assert inspect.getdoc(getattr(hrp, name)), name


def test_the_version_is_the_package_s_and_no_invention(monkeypatch):
    assert hrp.__version__ == version("hrp-lora")

    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hrp.versions.version", nothing)
    assert hrp.__version__ == "0+unknown"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'preheet'"):
        _ = hrp.preheet


def test_signatures_are_those_promised():
    config = list(inspect.signature(hrp.HRPConfig).parameters)
    assert config[:7] == [
        "preheat_rank",
        "preheat_steps",
        "direction",
        "scale",
        "train_factors",
        "learning_rate",
        "seed",
    ]
    preheat = list(inspect.signature(hrp.preheat).parameters)
    assert preheat[:6] == [
        "model",
        "config",
        "dataloader",
        "loss_fn",
        "trainer_cls",
        "adapter_name",
    ]
    initialize = list(inspect.signature(hrp.initialize_lora_hrp_weights).parameters)
    assert initialize[:5] == ["model", "spectrum", "direction", "scale", "adapter_name"]
