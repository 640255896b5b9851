"""The page of runs: what is read from their folders, and what is shown of it, escaped."""

import json
import re
from dataclasses import replace
from xml.parsers import expat

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.spectra_made import made_spectrum
from hrp.report.run_folder import Curve, RunFolder, read_run
from hrp.report.run_page import loss_figure, run_page
from hrp.report.shares import energy, share_at

EVIL = "<script>alert(1)</script>-->"


def state(losses, **more):
    log = [{"step": 10 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    return {"global_step": 10 * len(log), "log_history": log, **more}


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path):
    """A folder as `hrp sft` leaves it, its texts such as an attacker would choose."""
    folder = tmp_path / "run"
    cost = {"seconds": 12.5, "peak_memory_gib": 3.25, "examples": EVIL}
    made_spectrum(cost=cost, steps=3, base_model=EVIL).save(folder / "spectrum")
    settings = {"direction": "AB", "model_name_or_path": EVIL, "optim": EVIL, "truncation": "loss"}
    write(folder, "hrp.json", {"settings": settings, "length": {"max_steps": 20},
                               "peak_memory_gib": 4.5})  # fmt: skip
    logged = state([2.0, 1.5])
    logged["log_history"].append({"step": 20, "train_runtime": 77.0})
    write(folder, "trainer_state.json", logged)
    write(folder, "adapter_config.json", {"r": 2, "lora_alpha": 4, "target_modules": [EVIL]})
    weights = {
        f"base_model.model.{name}.lora_A.weight": torch.zeros(2, module.shape[1])
        for name, module in made_spectrum().items()
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_losses_of_preheating_and_of_fine_tuning_are_on_one_axis(run):
    (curve,) = read_run(run).curves
    assert curve == Curve("", (3.0, 2.5, 2.2), ((10, 2.0), (20, 1.5)))
    preheating, tuning = (line.get_xydata() for line in loss_figure([curve]).axes[0].lines[:2])
    assert preheating.tolist() == [[1, 3.0], [2, 2.5], [3, 2.2]]
    assert tuning.tolist() == [[13, 2.0], [23, 1.5]]


def test_a_preheating_that_several_arms_share_is_drawn_once():
    curves = [Curve(name, (3.0, 2.0), ((1, 1.0),)) for name in "ab"]
    lines = loss_figure([*curves, Curve("c", (), ((1, 1.0),))]).axes[0].lines
    assert [len(line.get_xdata()) for line in lines if line.get_linestyle() == ":"] == [2, 0]


def test_a_long_curve_is_a_running_mean_and_its_ends_are_kept():
    losses = np.linspace(3, 1, 200)
    (line,) = loss_figure([Curve("", (), tuple(enumerate(losses)))]).axes[0].lines
    assert line.get_ydata()[100] == pytest.approx(losses[100])
    assert line.get_ydata()[0] == pytest.approx(losses[:6].mean())


def test_the_page_shows_what_the_cut_kept_and_what_preheating_cost(run):
    text = run_page({"run": read_run(run)})
    shares = [share_at(energy(module), 2) for module in made_spectrum().values()]
    assert f"cut to rank 2 kept a share of {np.median(shares):.3f} of the plain energy" in text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert ["optimizer steps", "3", "20"] in cells
    assert ["seconds", "12.5", "77.0"] in cells
    assert ["peak GPU memory, GiB", "3.2", "4.5"] in cells
    assert ["max_steps", "20"] in cells


def test_everything_from_files_is_escaped_and_nothing_is_loaded(run):
    text = run_page({EVIL: read_run(run)}, EVIL)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;--&gt;") >= 6
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*", text) == []
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        expat.ParserCreate().Parse(svg.replace("xlink:", ""), True)


def test_the_losses_are_those_of_the_last_checkpoint_where_the_run_did_not_end(tmp_path):
    write(tmp_path, "checkpoint-9/trainer_state.json", state([3.0]))
    write(tmp_path, "checkpoint-10/trainer_state.json", state([3.0, 2.0]))
    write(tmp_path, "checkpoint-x/trainer_state.json", state([9.0]))
    (curve,) = read_run(tmp_path).curves
    assert curve.fine_tuning == ((10, 3.0), (20, 2.0))


def test_the_spectrum_that_a_run_was_given_is_found(tmp_path):
    made_spectrum().save(tmp_path / "elsewhere")
    write(tmp_path / "run", "trainer_state.json", state([1.0]))
    settings = {"spectrum": str(tmp_path / "elsewhere")}
    write(tmp_path / "run", "hrp.json", {"settings": settings})
    assert len(read_run(tmp_path / "run").spectrum) == 9


def test_a_demo_s_arms_are_curves_of_the_saved_seed_and_its_answers_are_shown(tmp_path):
    made_spectrum().save(tmp_path / "spectrum")
    arms = [
        {"arm": arm, "seed": seed, "preheat_steps": spent, "losses": [2.0, 1.0], "test_loss": 1.5}
        for seed in (0, 1) for arm, spent in (("default", 0), ("AB", 3))
    ]  # fmt: skip
    sample = {"question": EVIL, "before": "b\nb", "after": "a", "reference": "r"}
    record = {"runs": arms, "saved": {"arm": "AB", "seed": 1}, "samples": [sample]}
    write(tmp_path, "results.json", record)
    read = read_run(tmp_path)
    assert [(curve.name, len(curve.preheating)) for curve in read.curves] == [
        ("default", 0), ("AB", 3),
    ]  # fmt: skip
    text = run_page({"demo": read})
    assert "Answers before and after" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", {"log_history": [{"step": "first", "loss": 1.0}]}),
        ("results.json", {"samples": ["a"]}),
        ("results.json", {"test_loss": "low"}),
        ("results.json", {"losses": [None]}),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path, name, content):
    made_spectrum().save(tmp_path / "spectrum")
    if name == "results.json":
        arm = {"arm": "AB", "seed": 0, "preheat_steps": 3, "losses": [2.0]} | content
        content = {"runs": [arm], "saved": {"arm": "AB", "seed": 0}} | content
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match="has a record of another form"):
        read_run(tmp_path)


def test_a_spectrum_alone_shows_what_the_recommended_rank_would_keep():
    text = run_page({"s": RunFolder(made_spectrum(), ())})
    assert "What a cut keeps" in text
    assert "would keep a share of" in text


def test_costs_settings_and_maps_of_several_runs_stand_side_by_side(run):
    read = read_run(run)
    other = replace(read, settings={**read.settings, "direction": "B"})
    text = run_page({"one": read, "two": other})
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text)]
    assert ["optimizer steps", "3", "20", "3", "20"] in cells
    assert ["direction", "AB", "B"] in cells
    (kept,) = re.findall(r"<h2>What the cut kept</h2>(.*?)</section>", text, re.S)
    assert kept.count('class="figures"') == 1
    assert kept.count("<svg") == 2


def test_a_long_question_in_the_first_column_wraps():
    assert "td:first-child:not(.long) { white-space: nowrap; }" in run_page(
        {"s": RunFolder(made_spectrum(), ())}
    )


def test_steps_are_whole_numbers():
    ticks = loss_figure([Curve("", (3.5, 2.7, 3.0))]).axes[0].get_xticks()
    assert len(ticks) >= 2
    assert all(float(tick).is_integer() for tick in ticks)
