"""Automatic length stops when the subspaces settle; an interrupted preheating resumes exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

import hrp
from helpers.tiny import assert_identical, collate, fingerprint, loader, token_rows, with_lora
from helpers.tiny import tiny_llama as tiny
from hrp.adapters.layers import lora_modules
from hrp.preheating.checkpoints import MARKER, OWN_FOLDER, Checkpoints, last_complete
from hrp.preheating.stopping import SubspaceStopping, subspace_turn
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum


class KilledError(Exception):
    pass


def auto(**settings) -> hrp.HRPConfig:
    defaults = {
        "preheat_rank": 16,
        "preheat_steps": "auto",
        "learning_rate": 1e-2,
        "subspace_window": 2,
    }
    return hrp.HRPConfig(**defaults | settings)


def dying_trainer(calls_left: int):
    class Dying(Trainer):
        def training_step(self, *args, **kwargs):
            nonlocal calls_left
            calls_left -= 1
            if calls_left < 0:
                raise KilledError
            return super().training_step(*args, **kwargs)

    return Dying


def run(folder, config, trainer_cls=Trainer, every=2, **settings) -> Spectrum:
    model = with_lora(tiny(), lora_dropout=0.1)
    before = fingerprint(model)
    args = TrainingArguments(
        output_dir=str(folder / "unused"),
        per_device_train_batch_size=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **settings,
    )
    data = {"args": args, "train_dataset": token_rows(), "data_collator": collate}
    try:
        return hrp.preheat(
            model,
            config,
            trainer_cls=trainer_cls,
            checkpoints=Checkpoints(folder / "work", every),
            **data,
        )
    finally:
        assert_identical(before, fingerprint(model))


def assert_same(one: Spectrum, two: Spectrum) -> None:
    assert one.provenance["losses"] == two.provenance["losses"]
    for name in one:
        for part in ("U", "S", "Vh"):
            assert torch.equal(getattr(one[name], part), getattr(two[name], part)), name


def rotated(angle: float) -> Spectrum:
    """A two-dimensional leading subspace in R^3, its second direction turned out by ``angle``."""
    turn = torch.tensor(angle, dtype=torch.float64)
    U = torch.tensor([[1.0, 0.0], [0.0, turn.cos()], [0.0, turn.sin()]], dtype=torch.float64)
    module = ModuleSpectrum(
        U, torch.tensor([2.0, 1.0], dtype=torch.float64), U.mT.contiguous(), 1.0
    )
    return Spectrum({"module": module})


@pytest.mark.parametrize("sides", [("U",), ("Vh",), ("U", "Vh")])
def test_turn_is_one_minus_the_cosine_of_the_largest_angle(sides):
    for angle in (0.0, 0.3, 1.2):
        expected = 1 - torch.tensor(angle, dtype=torch.float64).cos().item()
        assert subspace_turn(rotated(0.0), rotated(angle), sides) == pytest.approx(expected)


def test_turn_is_the_median_over_modules():
    still, turned = rotated(0.0)["module"], rotated(1.5)["module"]
    before = Spectrum(dict.fromkeys("abc", still))
    assert subspace_turn(before, Spectrum({"a": still, "b": still, "c": turned}), ("U",)) < 1e-9
    assert subspace_turn(before, Spectrum({"a": still, "b": turned, "c": turned}), ("U",)) > 0.9


def test_a_wide_tolerance_stops_at_the_second_look(model):
    spectrum = hrp.preheat(model, auto(subspace_tolerance=1.1), dataloader=loader())
    assert spectrum.provenance["steps"] == 4
    assert spectrum.provenance["stopping"]["settled"]
    assert [look["step"] for look in spectrum.provenance["stopping"]["turns"]] == [4]


def test_a_tolerance_out_of_reach_goes_on_to_the_maximum(model):
    config = auto(subspace_tolerance=1e-9, max_preheat_steps=7)
    spectrum = hrp.preheat(model, config, dataloader=loader())
    assert spectrum.provenance["steps"] == 7
    assert not spectrum.provenance["stopping"]["settled"]


def test_subspaces_settle_on_a_task_with_a_constant_gradient(model):
    config = auto(max_preheat_steps=80, subspace_tolerance=0.05, direction="B")
    spectrum = hrp.preheat(model, config, dataloader=loader())
    turns = [look["turn"] for look in spectrum.provenance["stopping"]["turns"]]
    assert spectrum.provenance["steps"] < 80
    assert turns[-1] < 0.05 <= min(turns[:-1])


def test_auto_until_a_step_gives_the_spectrum_of_that_many_steps(model):
    stopped = hrp.preheat(
        model, auto(subspace_tolerance=1.1, warmup_share=0.0), dataloader=loader()
    )
    fixed = hrp.preheat(model, auto(preheat_steps=4, warmup_share=0.0), dataloader=loader())
    assert_same(stopped, fixed)


@pytest.mark.parametrize("train_factors", ["both", "A", pytest.param("B", marks=pytest.mark.slow)])
def test_an_interrupted_preheating_resumes_to_the_same_spectrum(tmp_path, train_factors):
    config = auto(preheat_steps=7, train_factors=train_factors)
    undisturbed = run(tmp_path / "one", config)
    with pytest.raises(KilledError):
        run(tmp_path / "two", config, dying_trainer(5))
    assert last_complete(tmp_path / "two" / "work" / OWN_FOLDER).name == "checkpoint-4"
    assert_same(run(tmp_path / "two", config), undisturbed)


def test_automatic_length_resumes_to_the_same_stop(tmp_path):
    config = auto(subspace_tolerance=0.05, subspace_window=3, max_preheat_steps=60)
    undisturbed = run(tmp_path / "one", config)
    steps = undisturbed.provenance["steps"]
    assert 6 < steps < 60
    with pytest.raises(KilledError):
        run(tmp_path / "two", config, dying_trainer(steps - 1))
    resumed = run(tmp_path / "two", config)
    assert_same(resumed, undisturbed)
    assert resumed.provenance["stopping"] == undisturbed.provenance["stopping"]


def test_a_checkpoint_without_its_marker_is_not_resumed(tmp_path):
    config = auto(preheat_steps=7)
    with pytest.raises(KilledError):
        run(tmp_path, config, dying_trainer(5))
    newest = tmp_path / "work" / OWN_FOLDER / "checkpoint-4"
    (newest / MARKER).unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    assert last_complete(tmp_path / "work" / OWN_FOLDER).name == "checkpoint-2"
    assert_same(run(tmp_path, config), run(tmp_path / "one", config))


def test_a_checkpoint_at_the_last_step_is_not_resumed(tmp_path):
    config = auto(preheat_steps=4)
    undisturbed = run(tmp_path, config)
    assert last_complete(tmp_path / "work" / OWN_FOLDER).name == "checkpoint-4"
    assert_same(run(tmp_path, config), undisturbed)


def test_checkpoints_with_a_dataloader_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`checkpoints` go with `trainer_cls`"):
        hrp.preheat(model, auto(), dataloader=loader(), checkpoints=Checkpoints(tmp_path))


def test_checkpoints_need_a_positive_interval(tmp_path):
    with pytest.raises(ValueError, match="`every` must be an integer >= 1, got 0"):
        Checkpoints(tmp_path, 0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("preheat_steps", "sometimes", "`preheat_steps` must be an integer >= 1"),
        ("max_preheat_steps", 0, "`max_preheat_steps` must be an integer >= 1, got 0"),
        ("subspace_window", 0, "`subspace_window` must be an integer >= 1, got 0"),
        ("subspace_tolerance", 0.0, "`subspace_tolerance` must be finite and > 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        hrp.HRPConfig(**{field: value})


def test_a_folder_of_another_preheating_s_checkpoints_is_refused(tmp_path):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=6, learning_rate=1e-2)
    with pytest.raises(KilledError):
        run(tmp_path, config, dying_trainer(5))
    other = dataclasses.replace(config, seed=1, learning_rate=2e-2)
    with pytest.raises(
        ValueError, match=r"learning_rate \(was 0.01, now 0.02\), seed \(was 0, now 1\)"
    ):
        run(tmp_path, other)
    with pytest.raises(
        ValueError, match=r"per_device_train_batch_size|gradient_accumulation_steps"
    ):
        run(tmp_path, config, gradient_accumulation_steps=2)
    assert run(tmp_path, config).provenance["steps"] == 6


def test_a_folder_may_be_given_as_a_string():
    assert Checkpoints("work").folder == Path("work") / OWN_FOLDER


def test_modules_that_no_gradient_has_reached_yet_are_passed_over(model):
    modules = lora_modules(model, "default")
    config = hrp.HRPConfig(4, "auto", subspace_window=1, max_preheat_steps=9)
    stopping = SubspaceStopping(config, modules, dict.fromkeys(modules, 2))
    assert not stopping.update(1)  # PEFT's start: every lora_B is zero
    first = next(iter(modules.values()))
    for step in (2, 3):
        first.write(*(torch.ones_like(factor) for factor in first.matrices()))
        stopping.update(step)
    assert [step for step, _ in stopping.curve] == [3]
    assert stopping.settled
