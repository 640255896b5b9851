"""The public names, and the one direction in which modules import each other."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import hrp

SOURCE = Path(hrp.__file__).parent
# Package or module -> those of ours that it must not import, directly.
FORBIDDEN = {
    "config.py": {"*"},
    "spectrum.py": {"layers", "preheating", "training", "initialization", "demo", "bench", "cli"},
    "factorization.py": {"*"},
    "layers.py": {"preheating", "training", "initialization", "demo", "bench", "cli", "report"},
    "initialization.py": {"demo", "bench", "cli", "report", "theory"},
    "preheating.py": {"initialization", "demo", "bench", "cli", "report", "theory"},
    "theory": {"layers", "preheating", "training", "initialization", "demo", "bench", "report"},
    "report": {"preheating", "training", "initialization", "demo", "cli"},
    "bench": {"report", "cli"},
}
HEAVY_IN_THEORY = {"peft", "transformers", "accelerate", "trl"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def files_of(part: str) -> list[Path]:
    return [SOURCE / part] if part.endswith(".py") else sorted((SOURCE / part).rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_run_one_way(part):
    for path in files_of(part):
        ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("hrp.")}
        ours -= {part.removesuffix(".py")}
        bad = ours if "*" in FORBIDDEN[part] else ours & FORBIDDEN[part]
        assert not bad, f"{path.name} imports {bad}"


def test_theory_needs_neither_peft_nor_transformers():
    for path in [*files_of("theory"), SOURCE / "spectrum.py", SOURCE / "factorization.py"]:
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & HEAVY_IN_THEORY, path.name


def test_theory_is_imported_without_loading_peft():
    script = "import sys, hrp_lab.theory; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


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


def test_the_version_is_known_without_loading_torch():
    script = "import sys, hrp; hrp.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


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
