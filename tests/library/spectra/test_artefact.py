"""A spectrum on disk is whole or absent, and foreign files are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import hrp
from helpers.factors import module_spectrum
from hrp.spectra import artefact


def some_spectrum() -> hrp.Spectrum:
    modules = {"a.q": module_spectrum(0), "b.v": module_spectrum(1, rank=3)}
    return hrp.Spectrum(modules, {"config": hrp.HRPConfig().to_dict(), "losses": [2.0, 1.5]})


@pytest.fixture
def folder(tmp_path):
    some_spectrum().save(tmp_path / "spectrum")
    return tmp_path / "spectrum"


def test_round_trip_is_exact(folder):
    loaded, original = hrp.Spectrum.load(folder), some_spectrum()
    assert list(loaded) == list(original)
    assert loaded.provenance == original.provenance
    for name in original:
        for part in ("U", "S", "Vh"):
            assert torch.equal(getattr(loaded[name], part), getattr(original[name], part))
        assert loaded[name].scaling == original[name].scaling


def test_provenance_is_readable_without_tensors(folder):
    header = json.loads((folder / "spectrum.json").read_text())
    described = {"shape": [20, 30], "rank": 3, "scaling": 1.0, "metric": False}
    assert header["modules"]["b.v"] == described
    assert header["provenance"]["losses"] == [2.0, 1.5]


def test_an_existing_folder_is_not_overwritten_unasked(folder):
    before = sorted(path.read_bytes() for path in folder.iterdir())
    with pytest.raises(FileExistsError, match="exists; choose another"):
        some_spectrum().save(folder)
    assert sorted(path.read_bytes() for path in folder.iterdir()) == before


def test_overwriting_replaces_the_spectrum_whole(folder):
    some_spectrum().crop(2).save(folder, overwrite=True)
    assert hrp.Spectrum.load(folder)["a.q"].rank == 2
    assert [path.name for path in folder.parent.iterdir()] == ["spectrum"]


def test_overwriting_removes_nothing_but_a_spectrum(folder):
    (folder / "thesis.txt").write_text("mine")
    (folder / "checkpoint-5").mkdir()
    with pytest.raises(FileExistsError, match="holds 'checkpoint-5' and 1 more besides"):
        some_spectrum().crop(2).save(folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    assert (folder / "checkpoint-5").is_dir()
    assert hrp.Spectrum.load(folder)["a.q"].rank == 6
    assert [path.name for path in folder.parent.iterdir()] == ["spectrum"]


def test_overwriting_does_not_replace_a_file(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file and not replaced by a folder"):
        some_spectrum().save(tmp_path / "thesis.txt", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_folder_with_anything_that_is_not_written_anew_is_not_replaced(tmp_path):
    def write(folder):
        (folder / "data").mkdir()
        (folder / "data" / "new").write_text("new")

    artefact.write_folder(tmp_path / "out", write)
    artefact.write_folder(tmp_path / "out", write, overwrite=True)
    (tmp_path / "out" / "data" / "letter").symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="holds 'data/letter' besides what is replaced"):
        artefact.write_folder(tmp_path / "out", write, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        some_spectrum().save(tmp_path / "spectrum")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_overwriting_keeps_the_old_one(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        some_spectrum().save(folder, overwrite=True)
    monkeypatch.undo()
    assert hrp.Spectrum.load(folder)["a.q"].rank == 6


@pytest.mark.parametrize("missing", ["spectrum.json", "spectrum.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        hrp.Spectrum.load(folder)


def edited_header(folder, **changes):
    path = folder / "spectrum.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edited_tensor(folder, name, tensor):
    path = folder / "spectrum.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


def truncated(folder):
    path = folder / "spectrum.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def huge_header(folder):
    (folder / "spectrum.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def pickled(folder):
    torch.save({"a": torch.ones(2)}, folder / "spectrum.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "not a safetensors file"),
        (huge_header, "not a safetensors file"),
        (pickled, "not a safetensors file"),
        (lambda f: (f / "spectrum.json").write_text("{"), "not JSON"),
        (lambda f: (f / "spectrum.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda f: (f / "spectrum.json").write_text("[]"), "does not say format"),
        (lambda f: edited_header(f, format="other"), "does not say format"),
        (
            lambda f: edited_header(f, format_version=9),
            "format_version must be one of .1, 2., got 9",
        ),
        (lambda f: edited_header(f, modules={}), "not empty"),
        (lambda f: edited_header(f, modules={"../x": {}}), "disagree on the tensors"),
        (lambda f: edited_tensor(f, "extra", torch.ones(1)), "disagree on the tensors"),
        (lambda f: edited_tensor(f, "a.q.S", torch.ones(5)), "not as declared"),
        (lambda f: edited_tensor(f, "a.q.S", torch.arange(6.0)), "descending"),
        (lambda f: edited_tensor(f, "a.q.S", torch.full((6,), torch.nan)), "finite"),
        (lambda f: edited_tensor(f, "a.q.U", torch.ones(20, 6)), "orthonormal"),
        (lambda f: edited_tensor(f, "a.q.S", torch.ones(6, dtype=torch.int64)), "dtypes"),
    ],
)
def test_damaged_and_foreign_files_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(hrp.SpectrumFormatError, match=message):
        hrp.Spectrum.load(folder)


def test_loading_writes_nothing(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    copy.chmod(0o555)
    hrp.Spectrum.load(copy)
    copy.chmod(0o755)
    assert sorted(path.name for path in copy.iterdir()) == [
        "spectrum.json",
        "spectrum.safetensors",
    ]
