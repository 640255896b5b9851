"""A spectrum on disk is whole or absent, and foreign files are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import hrp
from helpers.factors import module_spectrum
from helpers.faults import fault
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


def test_a_spectrum_that_keeps_nothing_replaces_one_that_kept_a_head(folder):
    spectrum = hrp.Spectrum.load(folder)
    hrp.Spectrum(spectrum, kept={"head": torch.ones(2)}).save(folder, overwrite=True)
    hrp.Spectrum(spectrum).save(folder, overwrite=True)
    assert hrp.Spectrum.load(folder).kept == {}
    assert not (folder / "kept.safetensors").exists()


def test_overwriting_removes_nothing_but_a_spectrum(folder):
    (folder / "thesis.txt").write_text("mine")
    (folder / "checkpoint-5").mkdir()
    with pytest.raises(FileExistsError, match="holds 'checkpoint-5' and 1 more besides"):
        some_spectrum().crop(2).save(folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    assert (folder / "checkpoint-5").is_dir()
    assert hrp.Spectrum.load(folder)["a.q"].rank == 6
    assert [path.name for path in folder.parent.iterdir()] == ["spectrum"]


@fault(
    "Whose file is it",
    "your own `spectrum.json` or `spectrum.safetensors`",
    command="`Spectrum.save`",
    outcome="`overwrite=True` is refused by name",
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spectrum.json", b'{"my": "notes"}'),
        ("spectrum.json", b"not JSON"),
        ("spectrum.safetensors", b"not safetensors"),
        ("kept.safetensors", b""),
    ],
)
def test_a_user_s_file_of_the_name_of_a_spectrum_s_is_not_replaced(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=f"holds '{name}' that is not of a spectrum"):
        some_spectrum().crop(2).save(folder, overwrite=True)
    assert (folder / name).read_bytes() == content


def test_a_user_s_tensors_of_the_name_of_a_spectrum_s_are_not_replaced(folder):
    save_file({"mine": torch.ones(2)}, folder / "spectrum.safetensors")
    with pytest.raises(FileExistsError, match="is not replaced; move it away"):
        some_spectrum().save(folder, overwrite=True)
    assert list(load_file(folder / "spectrum.safetensors")) == ["mine"]


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


def changed(**parts):
    """Return `module_spectrum` with other parts; beartype would refuse some before `save` does."""
    module = module_spectrum(0)
    for name, value in parts.items():
        object.__setattr__(module, name, value)
    return module


def of_metric(metric):
    return changed(left_metric=metric, right_metric=metric)


UNSOUND = {
    "NaN": changed(S=torch.full((6,), torch.nan)),
    "ascending": changed(S=torch.arange(6.0)),
    "not orthonormal": changed(U=torch.ones(20, 6)),
    "half precision": changed(Vh=module_spectrum(0).Vh.half()),
    "integers": changed(S=torch.arange(6).flip(0)),
    "other shapes": changed(S=torch.ones(5)),
    "a rank over the shape": changed(U=torch.ones(1, 6), Vh=torch.ones(6, 1)),
    "an endless scaling": changed(scaling=10**400),
    "a metric with NaN": of_metric(torch.full((6, 6), torch.nan)),
    "a negative metric": of_metric(-torch.eye(6)),
    "a metric of another shape": of_metric(torch.eye(5)),
}


@fault(
    "Hostile or damaged input",
    "a spectrum that could not be read again",
    command="`Spectrum.save`",
    outcome="refused; nothing is written",
)
@pytest.mark.parametrize("kind", UNSOUND)
def test_a_module_that_could_not_be_read_again_is_not_written(tmp_path, kind):
    with pytest.raises(ValueError, match=r"could not be read again: module 'a'"):
        hrp.Spectrum({"a": UNSOUND[kind]}).save(tmp_path / "spectrum")
    assert list(tmp_path.iterdir()) == []


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("provenance", "error"),
    [
        ({"loss": float("nan")}, ValueError),
        ({"mask": torch.ones(2)}, TypeError),
        ({"when": object()}, TypeError),
        ({"names": {"a", "b"}}, TypeError),
        ({"config": {(1, 2): 3}}, TypeError),
        ({"loop": LOOP}, ValueError),
    ],
)
def test_a_provenance_that_could_not_be_read_again_is_not_written(tmp_path, provenance, error):
    with pytest.raises(
        error, match="`provenance` must hold finite numbers, text, lists and dicts only"
    ):
        hrp.Spectrum(some_spectrum(), provenance).save(tmp_path / "spectrum")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [("\ud800", {}), ("a", {"__metadata__": torch.ones(1)}), ("a", {"\udfff": torch.ones(1)})],
)
def test_a_name_that_could_not_be_read_again_is_not_written(tmp_path, name, kept):
    with pytest.raises(ValueError, match=r"surrogates not allowed|could not be read again"):
        hrp.Spectrum({name: module_spectrum(0)}, {}, kept).save(tmp_path / "spectrum")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.full((2,), torch.inf), torch.ones(2).to_sparse()])
def test_kept_values_that_could_not_be_read_again_are_not_written(tmp_path, value):
    with pytest.raises((ValueError, RuntimeError), match=r"must be finite|unsupported"):
        hrp.Spectrum(some_spectrum(), {}, {"head": value}).save(tmp_path / "spectrum")
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    module = module_spectrum(0)
    head = torch.ones(3, 2, requires_grad=True)
    kept = {"one": head, "two": head.T, "n": head[0]}
    shared = hrp.Spectrum({"a": module, "b": module}, {}, kept)
    shared.save(tmp_path / "spectrum")
    loaded = hrp.Spectrum.load(tmp_path / "spectrum")
    assert torch.equal(loaded["a"].U, loaded["b"].U)
    assert torch.equal(loaded.kept["two"], head.T)
    assert loaded.kept["n"].tolist() == [1.0, 1.0]


@fault(
    "Two at once",
    "loading while another saves",
    command="`Spectrum.load`",
    outcome="one save or the other",
)
def test_a_load_is_of_one_save_also_where_another_comes_in_between(folder, monkeypatch):
    read = artefact.load_file

    def interrupted(path, **settings):
        monkeypatch.setattr(artefact, "load_file", read)
        some_spectrum().crop(2).save(folder, overwrite=True)
        return read(path, **settings)

    monkeypatch.setattr(artefact, "load_file", interrupted)
    assert hrp.Spectrum.load(folder)["a.q"].rank == 2


def written(folder, shapes, **declared):
    """Write a spectrum of one module of zeros by hand."""
    folder.mkdir()
    module = {"scaling": 1.0} | declared
    header = {"format": "hrp-spectrum", "format_version": 2, "modules": {"a": module}}
    (folder / "spectrum.json").write_text(json.dumps(header | {"provenance": {}}))
    tensors = {f"a.{part}": torch.zeros(shape) for part, shape in shapes.items()}
    save_file(tensors, folder / "spectrum.safetensors")
    return folder


@fault(
    "Hostile or damaged input",
    "a spectrum whose rank is over its shape",
    command="`Spectrum.load`",
    outcome="refused before anything of its square",
)
@pytest.mark.parametrize(("d_out", "d_in"), [(1, 1), (1, 9), (9, 1)])
def test_a_rank_over_the_shape_is_refused_before_anything_of_its_square(tmp_path, d_out, d_in):
    rank = 60_000 if d_out == d_in else 2
    shapes = {"U": (d_out, rank), "S": (rank,), "Vh": (rank, d_in)}
    folder = written(tmp_path / "s", shapes, shape=[d_out, d_in], rank=rank)
    with pytest.raises(hrp.SpectrumFormatError, match=r"must be from 1 to min\(d_out, d_in\) = 1"):
        hrp.Spectrum.load(folder)


def test_a_header_beyond_all_measure_is_refused_unread(folder):
    with (folder / "spectrum.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: nothing is written
    with pytest.raises(hrp.SpectrumFormatError, match="has more than 67108864 bytes"):
        hrp.Spectrum.load(folder)


@pytest.mark.parametrize("name", ["spectrum.json", "spectrum.safetensors", "kept.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_place_of_a_file_is_refused_without_waiting(tmp_path, name, kind):
    folder = tmp_path / "spectrum"
    hrp.Spectrum(some_spectrum(), {}, {"head": torch.ones(1)}).save(folder)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises((hrp.SpectrumFormatError, FileNotFoundError), match=f"has no {name}"):
        hrp.Spectrum.load(folder)


def _save_by_turns(folder, stop):
    one, two = spectrum_of(1.0), spectrum_of(2.0)
    while not stop.is_set():
        for spectrum in (two, one):
            spectrum.save(folder, overwrite=True)


def spectrum_of(value: float) -> hrp.Spectrum:
    module = hrp.ModuleSpectrum(torch.eye(4)[:, :2], torch.full((2,), value), torch.eye(4)[:2], 1.0)
    kept = {"head": torch.full((2,), value)}
    return hrp.Spectrum({"a": module}, {"seed": int(value)}, kept)


def test_a_reader_beside_two_writing_processes_sees_one_save_or_the_other(tmp_path):
    folder = tmp_path / "spectrum"
    spectrum_of(1.0).save(folder)
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    writers = [context.Process(target=_save_by_turns, args=(folder, stop)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    try:
        deadline = time.monotonic() + 60
        while len(seen) < 2 or time.monotonic() < deadline - 57:
            assert time.monotonic() < deadline
            spectrum = hrp.Spectrum.load(folder)
            values = {*spectrum["a"].S.tolist(), *spectrum.kept["head"].tolist()}
            assert values == {float(spectrum.provenance["seed"])}
            seen |= values
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen == {1.0, 2.0}
