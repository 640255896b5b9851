"""Foreign, damaged and hostile spectrum folders are read, or refused with one of two errors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hrp import ModuleSpectrum, Spectrum, SpectrumFormatError
from hrp.spectra.artefact import PROVENANCE_FILE, TENSORS_FILE

REFUSED = (SpectrumFormatError, FileNotFoundError)
ESCAPES = ("../outside", "/outside", "a/../../outside", "..\\outside", "C:\\x", "a\x00b")
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def small_spectrum(*names: str) -> Spectrum:
    generator = torch.Generator().manual_seed(0)
    modules = {}
    for name in names or ("one", "two"):
        U, _ = torch.linalg.qr(torch.randn(4, 2, generator=generator))
        V, _ = torch.linalg.qr(torch.randn(3, 2, generator=generator))
        modules[name] = ModuleSpectrum(U, torch.tensor([2.0, 1.0]), V.mT.contiguous(), 2.0)
    return Spectrum(modules, {"steps": 1})


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("original") / "spectrum"
    small_spectrum().save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def load_or_refuse(folder: Path) -> Spectrum | None:
    """Load a folder; return None for the two documented errors, and let any other fail the test."""
    before = sorted(folder.parent.rglob("*"))
    try:
        spectrum = Spectrum.load(folder)
    except REFUSED:
        spectrum = None
    assert sorted(folder.parent.rglob("*")) == before
    return spectrum


def assert_sound(spectrum: Spectrum | None) -> None:
    """What damage left readable is a spectrum all the same: finite, and orthonormal."""
    for module in (spectrum or {}).values():
        eye = torch.eye(module.rank, dtype=module.U.dtype)
        assert torch.allclose(module.U.mT @ module.U, eye, atol=1e-2)
        assert module.S.isfinite().all()


@FUZZ
@given(data=st.data())
def test_changed_bytes_are_refused_or_leave_a_sound_spectrum(original, tmp_path, data):
    name = data.draw(st.sampled_from([TENSORS_FILE, PROVENANCE_FILE]))
    content = bytearray(original[name])
    changes = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(changes, min_size=1, max_size=8)):
        content[position] = value
    folder = write(tmp_path / "spectrum", original | {name: bytes(content)})
    assert_sound(load_or_refuse(folder))


@FUZZ
@given(data=st.data())
def test_truncated_files_are_refused(original, tmp_path, data):
    name = data.draw(st.sampled_from([TENSORS_FILE, PROVENANCE_FILE]))
    # The closing newline of the JSON is all that may be lost.
    length = data.draw(st.integers(0, len(original[name]) - 2))
    folder = write(tmp_path / "spectrum", original | {name: original[name][:length]})
    assert load_or_refuse(folder) is None


@FUZZ
@given(data=st.data())
def test_shuffled_and_foreign_bytes_are_refused(original, tmp_path, data):
    name = data.draw(st.sampled_from([TENSORS_FILE, PROVENANCE_FILE]))
    noise = data.draw(st.binary(max_size=200) | st.permutations(list(original[name])).map(bytes))
    folder = write(tmp_path / "spectrum", original | {name: noise})
    assert_sound(load_or_refuse(folder))


@pytest.mark.parametrize("length", [2**31, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_without_reading_it(original, tmp_path, length):
    content = struct.pack("<Q", length) + original[TENSORS_FILE][8:]
    assert load_or_refuse(write(tmp_path / "s", original | {TENSORS_FILE: content})) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@FUZZ
@example(entry={"shape": [4, 3], "rank": 2, "scaling": 10**400})
@example(entry={"shape": [4, 3], "rank": 2, "scaling": "nan"})
@example(entry={"shape": [4, 3], "rank": True, "scaling": 2.0})
@given(
    entry=json_values
    | st.fixed_dictionaries({"shape": json_values, "rank": json_values, "scaling": json_values})
)
def test_a_wrong_entry_of_a_module_is_refused(original, tmp_path, entry):
    header = json.loads(original[PROVENANCE_FILE])
    header["modules"]["one"] = entry
    files = original | {PROVENANCE_FILE: json.dumps(header).encode()}
    assert_sound(load_or_refuse(write(tmp_path / "s", files)))


@FUZZ
@given(
    key=st.sampled_from(["format", "format_version", "modules", "provenance"]), value=json_values
)
def test_a_wrong_header_is_refused(original, tmp_path, key, value):
    header = json.loads(original[PROVENANCE_FILE]) | {key: value}
    loaded = load_or_refuse(
        write(tmp_path / "s", original | {PROVENANCE_FILE: json.dumps(header).encode()})
    )
    assert loaded is None or key == "provenance" or value == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("part", ["U", "S", "Vh"])
def test_a_wrong_dtype_is_refused(tmp_path, dtype, part):
    folder = rewritten(tmp_path, f"one.{part}", lambda tensor: tensor.to(dtype))
    assert load_or_refuse(folder) is None


CHANGES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "NaN": ("one.S", lambda S: S * float("nan")),
    "ascending": ("one.S", lambda S: S.flip(0)),
    "negative": ("one.S", lambda S: -S),
    "not orthonormal": ("one.U", lambda U: 2 * U),
    "infinite": ("one.Vh", lambda Vh: Vh / 0),
    "no rows": ("one.U", lambda U: U[:0]),
    "a vector": ("one.Vh", lambda Vh: Vh[0]),
    "a number": ("one.S", lambda S: S[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_are_no_svd_are_refused(tmp_path, change):
    assert load_or_refuse(rewritten(tmp_path, *CHANGES[change])) is None


def rewritten(folder: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Save a spectrum with one tensor changed, its header as it was."""
    spectrum = small_spectrum()
    spectrum.save(folder / "s")
    tensors = {f"{n}.{p}": getattr(m, p) for n, m in spectrum.items() for p in ("U", "S", "Vh")}
    tensors[key] = change(tensors[key])
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(packed, folder / "s" / TENSORS_FILE)
    return folder / "s"


@pytest.mark.parametrize(
    ("shapes", "declared"),
    [
        # The sizes in a row are as declared, the tensors are not: S a matrix and Vh a vector.
        (((2, 2), (2, 2), (3,)), {"shape": [2, 3], "rank": 2, "scaling": 1.0}),
        (((4, 0), (0,), (0, 3)), {"shape": [4, 3], "rank": 0, "scaling": 1.0}),
    ],
)
def test_shapes_that_only_seem_to_fit_are_refused(original, tmp_path, shapes, declared):
    header = json.loads(original[PROVENANCE_FILE]) | {"modules": {"one": declared}}
    folder = write(tmp_path / "s", {PROVENANCE_FILE: json.dumps(header).encode()})
    parts = zip(("U", "S", "Vh"), shapes, strict=True)
    save_file({f"one.{p}": torch.zeros(shape) for p, shape in parts}, folder / TENSORS_FILE)
    assert load_or_refuse(folder) is None


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_look_like_paths_write_nothing_outside(tmp_path, name):
    folder = tmp_path / "deep" / "spectrum"
    small_spectrum(name).save(folder)
    assert list(Spectrum.load(folder)) == [name]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [PROVENANCE_FILE, TENSORS_FILE]
    )


@pytest.mark.parametrize("missing", [TENSORS_FILE, PROVENANCE_FILE])
def test_a_folder_without_one_of_its_files_is_refused(original, tmp_path, missing):
    files = {name: content for name, content in original.items() if name != missing}
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        Spectrum.load(write(tmp_path / "s", files))


@pytest.mark.parametrize("kind", ["file", "folder in place of a file", "symlink to nowhere"])
def test_other_things_in_its_place_are_refused(original, tmp_path, kind):
    folder = tmp_path / "s"
    if kind == "file":
        folder.write_bytes(b"x")
    elif kind == "symlink to nowhere":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        write(folder, {PROVENANCE_FILE: original[PROVENANCE_FILE]})
        (folder / TENSORS_FILE).mkdir()
    with pytest.raises(REFUSED):
        Spectrum.load(folder)


def test_no_pickle_is_ever_opened(original, tmp_path):
    """A pickle that would run code on loading stays closed, whatever file it poses as."""
    trap = b"cbuiltins\nexec\n(S'raise SystemExit(3)'\ntR."
    for name in (TENSORS_FILE, PROVENANCE_FILE):
        assert load_or_refuse(write(tmp_path / "s", original | {name: trap})) is None
