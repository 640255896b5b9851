import json

import pytest
import torch

from helpers.spectra_made import made_spectrum
from hrp.cli import inspect, report
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
    assert f"wrote {out} (2 spectra)" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]


def test_report_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert report.main(["nowhere", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hrp report: ")
    assert "is no spectrum folder" in error
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
    assert "the following arguments are required: DIR" in capsys.readouterr().err


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
    assert "in the metric of the loss), R 16" in line
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
        "alignment.png", "alignment_inputs.png", "alignment_outputs.png", "effective_rank.png",
        "energy.png", "preheating.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "is no spectrum folder"),
        (["{spectrum}", "--compare", "{other}"], "both spectra must have the same modules"),
        (["{spectrum}", "--rank", "0"], "`--rank` must be at least 1, got 0"),
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
