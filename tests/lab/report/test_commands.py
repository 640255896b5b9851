import json

import pytest
import torch

from helpers.commands import call, questions, training
from helpers.spectra_made import made_spectrum
from hrp.cli import inspect, report
from hrp.files import digest
from hrp.report.run_folder import read_run
from hrp.report.shares import RULE, loss_share, share_at
from hrp.report.spectrum_views import alignment
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum


@pytest.fixture
def spectrum(tmp_path):
    made_spectrum(0).save(tmp_path / "spectrum")
    return tmp_path / "spectrum"


def test_report_writes_one_page_of_all_spectra(spectrum, tmp_path, capsys):
    made_spectrum(1).save(tmp_path / "other")
    out = tmp_path / "new" / "page.html"
    folders = [str(spectrum), str(tmp_path / "other")]
    assert report.main([*folders, "--out", str(out), "--title", "A title"]) == 0
    text = out.read_text()
    assert "<h1>A title</h1>" in text
    assert all(f"Spectrum {folder}" in text for folder in folders)
    assert f"wrote {out} (2 runs)" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]


def trained(folder, losses=((1, 2.0), (2, 1.5)), **record):
    """A folder as `hrp sft` leaves it, without adapter and spectrum."""
    folder.mkdir(parents=True)
    log = [{"step": step, "loss": loss} for step, loss in losses]
    state = {"global_step": len(log), "log_history": [*log, {"train_runtime": 7.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "hrp.json").write_text(json.dumps({"settings": record}))
    return folder


def test_report_s_page_is_in_the_run_s_folder_and_replaces_its_own_kind_alone(tmp_path, capsys):
    run = trained(tmp_path / "run")
    assert report.main([str(run)]) == 0
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == 2 * f"wrote {run / 'report.html'}\n"
    (run / "report.html").write_text("mine")
    for more in ([], ["--out", str(run / "report.html")]):
        assert report.main([str(run), *more]) == 2
        told = capsys.readouterr().err
        assert "is no page of `hrp report` and is not replaced; give another --out" in told
        assert (run / "report.html").read_text() == "mine"


def test_report_s_page_is_beside_a_spectrum_which_can_still_be_replaced(spectrum, tmp_path):
    assert report.main([str(spectrum)]) == 0
    assert (tmp_path / "spectrum-report.html").is_file()
    made_spectrum(1).save(spectrum, overwrite=True)


def test_a_demo_s_record_knows_the_page_that_is_made_anew(tmp_path):
    run = trained(tmp_path / "run")
    (run / "results.json").write_text('{"files": {"report.html": ["old"]}}')
    assert report.main([str(run)]) == 0
    record = json.loads((run / "results.json").read_text())
    assert record == {"files": {"report.html": [digest(run / "report.html")]}}


def test_several_runs_are_side_by_side_with_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "one", learning_rate=0.25)
    trained(tmp_path / "two", learning_rate=0.5)
    assert report.main(["one", "two"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 1
    assert "<td>learning_rate</td><td>0.25</td><td>0.5</td>" in text


def test_a_folder_with_nothing_usable_says_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hrp.json").write_text("not JSON")
    (tmp_path / "run" / "trainer_state.json").write_text('{"log_history": []}')
    assert report.main([str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "holds nothing to show: looked for a spectrum ('spectrum.json' here" in error
    assert "remove" not in error
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "hrp.json", "trainer_state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "history", ["[3]", '[{"step": 1, "loss": "x"}]', '[{"loss": 1.0}]', "7", '{"a": 1}']
)
def test_a_record_of_another_form_is_refused_in_one_line(tmp_path, capsys, history):
    (tmp_path / "trainer_state.json").write_text(f'{{"log_history": {history}}}')
    assert report.main([str(tmp_path)]) == 2
    assert "looked for a spectrum ('spectrum.json' here" in capsys.readouterr().err


def test_a_page_that_fails_does_not_fail_the_finished_run(tmp_path, capsys):
    run = trained(tmp_path / "run")
    (run / "report.html").mkdir()
    assert report.write_own_page(run) is None
    assert "no page was written: " in capsys.readouterr().err


def test_sft_ends_with_the_page_of_what_it_did_and_can_be_run_again_over_it(tmp_path, capsys):
    flags = training(questions(tmp_path), tmp_path / "run", "--logging_steps", "1")
    assert call("sft", *flags) == 0
    page = tmp_path / "run" / "report.html"
    assert f"What the run did: {page}" in capsys.readouterr().out
    (curve,) = read_run(tmp_path / "run").curves
    assert len(curve.preheating) == 5
    assert [step for step, _ in curve.fine_tuning] == [1, 2, 3, 4]
    assert "cut to rank 4 kept a share of" in page.read_text()
    page.unlink()
    assert report.main([str(tmp_path / "run")]) == 0
    assert call("sft", *flags, "--overwrite") == 0
    assert page.is_file()


def test_without_matplotlib_no_page_is_written_and_nothing_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert report.write_own_page(trained(tmp_path / "run")) is None
    assert capsys.readouterr() == ("", "")


def test_report_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert report.main(["nowhere", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hrp report: ")
    assert "'nowhere' is no folder" in error
    assert not out.exists()


def test_report_with_an_unwritable_output_is_an_error_not_a_traceback(spectrum, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert report.main([str(spectrum), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert "hrp report: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [report, inspect])
def test_each_command_s_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    assert "example" in capsys.readouterr().out


def test_report_without_anything_to_show_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main(["--out", str(tmp_path / "page.html")])
    assert stopped.value.code == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err


def test_inspect_prints_a_row_a_module_and_the_loss_per_step(spectrum, capsys):
    assert inspect.main([str(spectrum)]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("model.layers.")]
    assert len(rows) == 9
    assert "24 x 16" in rows[1]
    assert "loss per preheating step:\n    1:   3.0000   2.5000   2.2000" in text
    assert 'base_model: "base-lm-30m"' in text


def test_inspect_aligns_with_another_spectrum_as_the_library_does(spectrum, tmp_path, capsys):
    made_spectrum(1).save(tmp_path / "other")
    arguments = [str(spectrum), "--compare", str(tmp_path / "other"), "--rank", "3", "--json"]
    assert inspect.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["alignment"]["rank"] == 3
    assert facts["alignment"]["U"] == pytest.approx(
        alignment(made_spectrum(0), made_spectrum(1), 3, "U")
    )
    assert inspect.main(arguments[:-1]) == 0
    assert "alignment at rank 3" in capsys.readouterr().out


def test_inspect_s_json_holds_what_the_table_shows(spectrum, capsys):
    assert inspect.main([str(spectrum), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    module = facts["modules"]["model.layers.0.mlp.down_proj"]
    assert module["shape"] == [16, 32]
    assert set(module["effective_rank"]) == {"entropy", "stable", "energy", "loss"}
    assert module["energy"]["32"] == pytest.approx(1.0)
    assert module["loss_share"] == {"4": None, "8": None, "16": None, "32": None}
    assert facts["recommendation"]["in_loss"] is False
    assert facts["provenance"]["losses"] == [3.0, 2.5, 2.2]


def test_inspect_shows_what_ranks_keep_in_the_metric_of_the_loss_and_recommends(tmp_path, capsys):
    left = torch.diag(torch.tensor([1e3, *[1e-3] * 7]))
    module = ModuleSpectrum(torch.eye(8), torch.ones(8), torch.eye(8), 1.0, left, torch.eye(8))
    Spectrum({"layers.0.x": module, "head": made_spectrum()["model.layers.0.mlp.down_proj"]}).save(
        tmp_path / "spectrum"
    )
    assert inspect.main([str(tmp_path / "spectrum")]) == 0
    text = capsys.readouterr().out
    head, row = (
        next(li for li in text.splitlines() if li.startswith(n)) for n in ("head", "layers")
    )
    assert row.split()[-8:-4] == ["0.500", "1.000", "1.000", "1.000"]
    kept = share_at(loss_share(module), 4)
    assert row.split()[-4] == f"{kept:.3f}" > "0.9"
    assert head.split()[-4:] == ["—"] * 4
    (line,) = (line for line in text.splitlines() if "recommended" in line)
    assert line.startswith("recommended rank 4 (the median module keeps")
    assert "in the metric of the loss), preheat rank 16" in line
    assert line.endswith(RULE)
    assert inspect.main([str(tmp_path / "spectrum"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["modules"]["layers.0.x"]["loss_share"]["4"] == pytest.approx(kept)
    assert facts["recommendation"]["kept"]["4"] == pytest.approx(kept)


def test_the_rule_of_the_recommendation_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        inspect.main(["--help"])
    assert RULE in " ".join(capsys.readouterr().out.split())


def test_inspect_writes_its_figures(spectrum, tmp_path, capsys):
    made_spectrum(1).save(tmp_path / "other")
    out = tmp_path / "figures"
    arguments = [str(spectrum), "--compare", str(tmp_path / "other"), "--out", str(out)]
    assert inspect.main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "alignment_inputs.png", "alignment_outputs.png", "effective_rank.png", "energy.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "is no spectrum folder"),
        (["{spectrum}", "--compare", "{other}"], "both spectra must have the same modules"),
        (["{spectrum}", "--rank", "0"], "`rank` must be an integer >= 1, got 0"),
        (["{spectrum}", "--out", "{file}/figures"], "is no folder; choose another"),
    ],
)
def test_inspect_says_what_is_wrong(spectrum, tmp_path, capsys, arguments, message):
    made_spectrum(layers=2).save(tmp_path / "other")
    (tmp_path / "file").write_text("")
    places = {"spectrum": spectrum, "other": tmp_path / "other", "file": tmp_path / "file"}
    assert inspect.main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hrp inspect: ")
    assert message in captured.err
    assert captured.out == ""
