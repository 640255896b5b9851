"""Name a function by its docstring: data that any Python installation has, of another kind.

The rows are the documented functions of the standard library's modules. Whole modules are held out
for testing, so that no test row shares its module with a training row. Which rows there are depends
on the version of Python, which every record names.

Options: ``train_rows`` and ``test_rows`` (None: all), ``max_length`` tokens, ``eval_batch_size``,
``forgetting_rows`` (see `gsm8k`). There is no dataset to give.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hrp_lab.bench.tasks import Task, TaskRequest
from hrp_lab.bench.tasks.answers import Pair
from hrp_lab.bench.tasks.gsm8k import judged_by_answers

PROMPT = "Describe: {docstring}\nFunction: "
_HELD_OUT = 5  # one module of so many
_SHORTEST = 20  # letters of a docstring that says anything
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    if request.dataset:
        raise ValueError(
            f"`dataset` must be None: the rows are Python's own, got {request.dataset}"
        )
    options = request.settings(
        train_rows=None, test_rows=None, max_length=128, eval_batch_size=64, forgetting_rows=0
    )
    train, test = splits()
    return judged_by_answers(
        request, train[: options["train_rows"]], test[: options["test_rows"]], options
    )


def splits() -> tuple[list[Pair], list[Pair]]:
    """Return the training and the test rows, in an order that only the library's files decide.

    A module's hash says where it belongs, so a module that comes or goes with a version of Python
    moves no other. Docstrings of test rows that also stand in training rows are left out.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    by_split: tuple[list[Pair], list[Pair]] = ([], [])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).as_posix()
        if not _LEFT_OUT & set(path.relative_to(library).parts):
            by_split[held_out(module)].extend(_documented(path))
    train = sorted(dict.fromkeys(by_split[0]), key=_shuffled)
    known = {prompt for prompt, _ in train}
    test = [pair for pair in dict.fromkeys(by_split[1]) if pair[0] not in known]
    return train, sorted(test, key=_shuffled)


def held_out(module: str) -> bool:
    """Return whether a module's functions are test rows; a package counts as one module."""
    package = module.partition("/")[0]
    return int(hashlib.sha256(package.encode()).hexdigest(), 16) % _HELD_OUT == 0


def _shuffled(pair: Pair) -> str:
    return hashlib.sha256("\n".join(pair).encode()).hexdigest()


def _documented(path: Path) -> Iterator[Pair]:
    """Yield prompt and name of every public function with a docstring that does not name it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a few files are templates or samples of old syntax
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            summary = (ast.get_docstring(node) or "").partition("\n\n")[0]
            docstring = " ".join(summary.split())
            if len(docstring) >= _SHORTEST and node.name not in docstring:
                yield PROMPT.format(docstring=docstring), node.name
