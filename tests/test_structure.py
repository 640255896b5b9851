"""The house keeps its shape: rooms, the one direction of imports, sizes and names."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

import hrp

ROOT = Path(__file__).parents[1]
PACKAGES = {"hrp": ROOT / "src" / "hrp", "hrp_lab": ROOT / "lab" / "src" / "hrp_lab"}

# Data flow down this list: a room imports from the rooms above it and from itself.
ROOMS = (
    ("errors", "validation", "files", "versions"),
    ("config",),
    ("spectra",),
    ("adapters",),
    ("preheating",),
    ("initialization",),
    ("integrations",),
    ("",),  # `hrp` itself, which names what is public
    ("report", "demo"),
    ("cli",),
    ("__main__",),
)
SPECTRA_MAY_IMPORT = {"torch", "safetensors", "jaxtyping", "numpy"}
SPECTRA_MAY_USE = {"errors", "files", "validation", "config", "spectra"}

# What the lab takes of the library beside the public names: nothing else, and all of it.
INTERNALS_OF_THE_LAB = {
    "hrp.adapters.casting": {"casts_left_to_autocast"},
    "hrp.adapters.layers": {"lora_modules"},
    "hrp.adapters.reading": {"read_spectrum"},
    "hrp.cli": {"run_command"},
    "hrp.cli.failures": {"reported"},
    "hrp.cli.locks": {"held", "lock_beside"},
    "hrp.cli.outputs": {"check_place"},
    "hrp.cli.yaml_files": {"read_yaml"},
    "hrp.config": {"Direction"},
    "hrp.demo": {"BASE"},
    "hrp.demo.data": {"PROBLEMS"},
    "hrp.files": {"clear_dead_staging", "write_file", "write_folder", "write_text"},
    "hrp.preheating.rates": {"rates_of"},
    "hrp.report.blocks": {"Block", "FigureBlock", "Heading", "Section", "Sentences", "TableBlock"},
    "hrp.report.figures": {"INK", "colour", "drawn", "heat_map", "plain"},
    "hrp.report.html": {"check_page", "page"},
    "hrp.report.spectrum_views": {"spectrum_sections"},
    "hrp.report.table": {"DASH", "Table", "markdown_text", "number"},
    "hrp.spectra.factorization": {"factored_svd"},
    "hrp.spectra.truncation": {"DAMPING", "loss_truncation"},
    "hrp.validation": {
        "check_choice",
        "check_integer",
        "check_positive",
        "check_type",
        "is_finite",
    },
    "hrp.versions": {"installed_versions"},
}


@cache
def modules_of(package: str) -> dict[str, Path]:
    """Return the package's modules by their dotted names."""
    folder = PACKAGES[package]
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@cache
def imports_of(path: Path) -> list[tuple[str, str]]:
    """List (module, name) of every import in a file, also in functions; "" for `import x`."""
    imports = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import, which this test cannot follow"
            imports += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imports += [(alias.name, "") for alias in node.names]
    return imports


def edges(package: str) -> dict[str, set[str]]:
    """Map each module of a package to those of the same package that it imports."""
    modules = modules_of(package)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = [f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in imports_of(path)]
        graph[module] = {target for target in targets if target in modules} - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the import circles: modules that reach each other, as sorted lists."""
    reachable: dict[str, set[str]] = {}
    for module in graph:
        seen: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            target = waiting.pop()
            if target not in seen:
                seen.add(target)
                waiting += graph[target]
        reachable[module] = seen
    groups = {
        tuple(sorted(other for other in seen if module in reachable[other]))
        for module, seen in reachable.items()
        if module in seen
    }
    return sorted(map(list, groups))


def room(module: str) -> str:
    """Return the first part of a module's name below `hrp`, "" for `hrp` itself."""
    return module.split(".")[1] if "." in module else ""


def level(module: str) -> int:
    return next(number for number, rooms in enumerate(ROOMS) if room(module) in rooms)


def line_count(package: str) -> int:
    return sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in modules_of(package).values()
    )


@cache
def tracked_files() -> list[Path]:
    """List the files that git tracks and that are there; skip the test outside a checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def loaded_by(script: str) -> set[str]:
    """Return the names of the top-level packages in memory after a script has run."""
    script += "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", f"import sys\n{script}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(printed.splitlines()[-1].split())


@pytest.mark.parametrize("module", modules_of("hrp"))
def test_imports_in_the_library_run_one_way(module):
    for target in edges("hrp")[module]:
        if room(target) != room(module):
            assert level(target) < level(module), f"{module} imports {target}"


def test_the_spectra_know_linear_algebra_and_no_library_of_models():
    for module, path in modules_of("hrp").items():
        if room(module) != "spectra":
            continue
        for imported, name in imports_of(path):
            root = imported.partition(".")[0]
            ours = room(imported) or name
            allowed = ours in SPECTRA_MAY_USE if root == "hrp" else root in SPECTRA_MAY_IMPORT
            assert allowed or root in sys.stdlib_module_names, f"{module} imports {imported}"


def test_the_library_never_imports_the_lab():
    for module, path in modules_of("hrp").items():
        for imported, _ in imports_of(path):
            assert imported.partition(".")[0] != "hrp_lab", module


def test_the_lab_uses_public_names_and_the_listed_internals_and_no_others():
    used: dict[str, set[str]] = {}
    for path in modules_of("hrp_lab").values():
        for imported, name in imports_of(path):
            public = name in hrp.__all__ or (imported, name) == ("hrp", "")
            if imported.partition(".")[0] == "hrp" and not public:
                used.setdefault(imported, set()).add(name)
    assert used == INTERNALS_OF_THE_LAB


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    assert circles(edges(package)) == []


def test_a_circle_is_seen_however_long_it_is():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_name_stands_twice_in_a_package(package):
    counts = Counter(path.name for path in modules_of(package).values())
    twice = {name for name, count in counts.items() if count > 1}
    assert twice <= {"__init__.py", "__main__.py"}


def test_the_packages_stay_small():
    """The rooms alone took 7,000 and 15,700 lines; the rest came with what was built in them."""
    assert line_count("hrp") <= 9_900
    assert line_count("hrp") + line_count("hrp_lab") < 19_400


def test_the_repository_has_few_files():
    assert len(tracked_files()) <= 500


def test_nothing_refers_to_a_note_that_is_not_in_the_repository():
    note = "HRP" + ".md"
    texts = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".cff", ""}
    paths = [path for path in tracked_files() if path.suffix in texts]
    referring = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if note in line
    ]
    assert referring == []


def test_no_test_imports_another_test_or_conftest():
    """What tests share lives in `tests/helpers`."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for imported, _ in imports_of(path):
            root = imported.partition(".")[0]
            assert not root.startswith(("test_", "conftest", "tests")), f"{path} imports {imported}"


def test_the_tests_mirror_both_packages():
    for tests, package in (("library", "hrp"), ("lab", "hrp_lab")):
        for folder in (ROOT / "tests" / tests).rglob("*"):
            if folder.is_dir() and folder.name != "__pycache__":
                mirrored = PACKAGES[package] / folder.relative_to(ROOT / "tests" / tests)
                assert mirrored.is_dir(), f"{folder} mirrors no room"


def test_the_tree_in_contributing_names_every_room_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.partition("src/hrp/ ")[2].partition("\nlab/ ")[0]
    named = set(re.findall(r"(?:^  |\b)(\w+(?:\.py|/))", tree, re.M))
    entries = {path.name + "/" * path.is_dir() for path in PACKAGES["hrp"].iterdir()}
    assert named == {entry for entry in entries if re.fullmatch(r"[a-z]\w*(\.py|/)", entry)}
    rooms = {path.name for path in PACKAGES["hrp_lab"].iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"src/hrp_lab/(\w+)/", text)) == rooms


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2502.07739"


def test_ci_runs_what_the_readme_tells_a_person_to_run():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["check-and-test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert {"run": "make check test"} in job["steps"]


@pytest.mark.parametrize(
    "script",
    ["import hrp; hrp.__version__", "from hrp.cli import main; main(['--help'])"],
    ids=["import hrp", "hrp --help"],
)
def test_what_only_looks_loads_no_heavy_library(script):
    loaded = loaded_by(script)
    assert "hrp" in loaded
    assert not loaded & {"torch", "peft", "transformers", "accelerate", "numpy"}


def test_the_theory_loads_no_library_of_models():
    assert not loaded_by("import hrp_lab.theory.check") & {
        "peft",
        "transformers",
        "accelerate",
        "trl",
    }
