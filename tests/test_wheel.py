"""What users install: the library's wheel holds the library alone, and needs its own list alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE_FILES = {path.name for path in (ROOT / "src" / "hrp" / "demo" / "base").iterdir()}

# These are of the lab or of the extra `cli`. `attr` is the import name of attrs' older half.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

BLOCKED = {"sklearn", "attrs", "attr", "ray", "matplotlib", "scipy", "datasets", "trl"}


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run_without_extras(script: str, folder: Path) -> str:
    command = [sys.executable, "-c", WITHOUT + script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_block_hides_what_it_names(tmp_path):
    script = "import importlib.util\nprint([n for n in BLOCKED if importlib.util.find_spec(n)])"
    assert run_without_extras(script, tmp_path) == "[]\n"


def test_the_library_and_the_demo_are_imported_without_the_extras_and_the_lab(tmp_path):
    script = """
import hrp, hrp.demo.runs
for name in hrp.__all__:
    getattr(hrp, name)
from hrp.cli import main
try:
    main(["demo", "--help"])
except SystemExit as stopped:
    assert stopped.code == 0
print("hrp_lab" in sys.modules, sorted(BLOCKED & set(sys.modules)))
"""
    printed = run_without_extras(script, tmp_path)
    assert "usage: hrp demo" in printed
    assert printed.endswith("False []\n")


@pytest.mark.slow
def test_the_demo_runs_without_the_extras(tmp_path):
    script = """
from hrp.cli import main
sys.exit(main(["demo", "--steps", "5", "--seeds", "1", "--out", "out"]))
"""
    assert "Wrote out" in run_without_extras(script, tmp_path)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling, of the extra `dev`")
def test_the_wheel_holds_the_library_with_its_base_model_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("hrp_lora-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"hrp", "hrp_lora"}
    library = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "hrp").rglob("*.py")}
    pages = {"hrp/report/page.html", "hrp/report/page.css", "hrp/cli/card.md"}
    assert library | pages | {"hrp/py.typed"} <= names
    assert {f"hrp/demo/base/{name}" for name in BASE_FILES} <= names
    problems = {f"hrp/demo/problems/{split}.jsonl" for split in ("train", "test")}
    assert problems <= names
    rest = names - problems
    assert not [name for name in rest if "test" in name or "/lab/" in name or "hrp_lab" in name]
