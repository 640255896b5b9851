"""Private names of PEFT, Transformers, Accelerate and TRL stand in `hrp.adapters.compat` alone."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterable
from pathlib import Path

import pytest

PRIVATE_NAMES = {
    "peft.tuners.lora.layer:_ConvNd": "peft 0.21.2",
    "peft.tuners.lora.layer:Embedding._embed": "peft 0.21.2",
    "accelerate.state:GradientState._shared_state": "accelerate 1.15.0",
    "accelerate.state:GradientState._reset_state": "accelerate 1.15.0",
    "accelerate.state:AcceleratorState._shared_state": "accelerate 1.15.0",
    "accelerate.state:AcceleratorState._reset_state": "accelerate 1.15.0",
}
"""Each private name in use, and the version that it was seen in."""

ROOT = Path(__file__).parents[3]
COMPAT = Path("src/hrp/adapters/compat.py")
# What else has an underscore and is no name of theirs, or cannot be had otherwise.
ALLOWED = {
    # torch and the standard library
    # with an attribute of a built Trainer, which is restored where there is one
    "src/hrp/adapters/restoring.py": {"_parameters", "_buffers", "_memory_tracker"},
    "src/hrp/cli/arguments.py": {"_actions", "_get_help_string"},
    "src/hrp/cli/help_page.py": {"_actions"},
    "lab/src/hrp_lab/bench/engines.py": {"_exit"},
    "lab/src/hrp_lab/bench/record.py": {"_fields"},
    "lab/src/hrp_lab/bench/speed/options.py": {"_dynamo", "_compiled_call_impl"},
    "lab/src/hrp_lab/bench/speed/cuda_graphs.py": {"_foreach_zero_"},
    "lab/src/hrp_lab/theory/sweep.py": {"_asdict"},
    "lab/src/hrp_lab/theory/truncation_sweep.py": {"_asdict"},
    # of the lab, which asks for newer releases
    "lab/src/hrp_lab/bench/data_starts.py": {"_peft_loraga_grad"},
    "lab/src/hrp_lab/bench/speed/padding_free.py": {"_attn_implementation"},
}
BY_NAME = ("getattr", "setattr", "hasattr", "delattr")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def private_names(source: str) -> set[str]:
    """Collect the private names that a file takes from another object, module or package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {*str(node.module).split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            names |= {text.value for text in node.args[1:2] if isinstance(text, ast.Constant)}
    return {name for name in names if is_private(name)}


def missing(names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that the installed releases do not have."""
    gone = []
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            gone.append(name)
    return gone


def test_the_installed_releases_have_every_private_name_in_use():
    told = [f"{name} (seen in {PRIVATE_NAMES[name]})" for name in missing(PRIVATE_NAMES)]
    assert told == []


def test_a_name_that_is_gone_is_missing():
    gone = ["peft.tuners.lora.layer:Embedding._gone", "peft.gone:Name"]
    assert missing([*PRIVATE_NAMES, *gone]) == gone


def test_the_list_names_every_private_name_that_the_file_uses():
    listed = {name.rpartition(".")[2].rpartition(":")[2] for name in PRIVATE_NAMES}
    assert private_names((ROOT / COMPAT).read_text(encoding="utf-8")) == listed


@pytest.mark.parametrize("package", ["src/hrp", "lab/src/hrp_lab"])
def test_no_other_file_touches_a_private_name_of_theirs(package):
    taken = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT)
        others = private_names(path.read_text(encoding="utf-8")) - ALLOWED.get(str(name), set())
        if others and name != COMPAT:
            taken[str(name)] = others
    assert taken == {}


def test_the_scan_sees_attributes_imports_and_names_in_words():
    source = """
from peft.tuners._buffer import _dict
import trl._compat
layer._embed
getattr(model, "_hidden", None)
self._ours, cls._ours, x.__class__, _
"""
    assert private_names(source) == {"_buffer", "_dict", "_compat", "_embed", "_hidden"}
