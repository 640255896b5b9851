"""Loads the user's data as TRL takes it: from the hub, files or folders, through templates."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from trl import get_dataset

from hrp.cli.arguments import DataArguments
from hrp.cli.failures import UsageError

# File suffix -> name of the builder in `datasets`.
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_CHAINS = ("::", "://")  # which make a path inside an archive, or on another machine
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def load_splits(script: Any, data: DataArguments, mixture: Any = None) -> Any:
    """Load the data that the flags name, as a mapping of split name to dataset.

    Raises:
        UsageError: no data, or two; an unknown suffix, an empty file, a broken line.
        FileNotFoundError: the path, or the data set on the hub, is not there.
    """
    if mixture is not None and mixture.datasets:
        return get_dataset(mixture)
    if bool(data.dataset_path) == bool(script.dataset_name):
        given = "both" if data.dataset_path else "neither"
        raise UsageError(f"exactly one of --dataset_path and --dataset_name is needed, got {given}")
    named = data.dataset_path or script.dataset_name
    if data.dataset_path or Path(named).is_file():
        return _load_local(Path(named), script.dataset_streaming)
    if Path(named).is_dir():
        _check_literal(Path(named))
    try:
        return datasets.load_dataset(
            named, name=script.dataset_config, streaming=script.dataset_streaming
        )
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"no data set {named!r} on the hub ({error}); a local file goes with --dataset_path"
        ) from error


def _load_local(path: Path, streaming: bool) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"`--dataset_path` '{path}' does not exist")
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _load_saved(path, streaming)
        _check_literal(path)
        files = [file for file in path.rglob("*") if file.is_file()]
        return _checked_load(str(path), files, streaming=streaming)
    if not path.is_file():
        raise UsageError(f"`--dataset_path` '{path}' is neither a file nor a folder")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise UsageError(f"`--dataset_path` must be a folder or end in {known}, got '{path}'")
    if path.stat().st_size == 0:
        raise UsageError(f"`--dataset_path` '{path}' is an empty file")
    _check_literal(path, _CHAINS)
    # `datasets` takes every path for a pattern.
    return _checked_load(kind, [path], data_files=glob.escape(str(path)), streaming=streaming)


def _load_saved(path: Path, streaming: bool) -> Any:
    """Load what `save_to_disk` of `datasets` wrote."""
    try:
        loaded = datasets.load_from_disk(str(path))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(
            f"`--dataset_path` '{path}' is no whole data set of `save_to_disk`, save it again "
            f"({error!r})"
        ) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {n: split.to_iterable_dataset() if streaming else split for n, split in splits.items()}


def _check_literal(path: Path, marks: tuple[str, ...] = (*_CHAINS, *"[*?")) -> None:
    """Raise ``UsageError`` where `datasets` would read other files than those at ``path``."""
    held = [mark for mark in marks if mark in str(path.absolute())]
    if held:
        raise UsageError(
            f"'{path}' has {held[0]!r} in its name, which the library `datasets` takes for a "
            "pattern; rename it, or give a file of it as --dataset_path"
        )


def _checked_load(builder: str, files: list[Path], **settings: Any) -> Any:
    """Load, and where that fails say which line of which JSON file is broken."""
    try:
        return datasets.load_dataset(builder, **settings)
    except (DatasetGenerationError, ValueError) as error:
        for path in files:
            if path.suffix.lower() in (".json", ".jsonl"):
                _find_broken_line(path)
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            cause = UsageError("there must be at least one row, got none")
        place = builder if len(files) != 1 else files[0]
        raise UsageError(f"the data in '{place}': {cause}") from error


def _find_broken_line(path: Path) -> None:
    """Raise ``UsageError`` that names the first line that is no JSON object."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and path.suffix.lower() == ".json" and line.lstrip()[:1] == "[":
                return  # one array over many lines
            fault = ""
            try:
                row = json.loads(line.rstrip("\r\n")) if line.strip() else {}
                if not isinstance(row, dict):
                    fault = f"must be a JSON object, got {type(row).__name__}"
            except json.JSONDecodeError as error:
                fault = f"is not JSON ({error.msg} at column {error.colno})"
            if fault:
                raise UsageError(f"'{path}', line {number} {fault}; mend it")


def split_of(splits: Any, name: str, flag: str) -> Any:
    """Pick the split called ``name``; raises ``UsageError`` that lists those there are."""
    if name not in splits:
        raise UsageError(f"`--{flag}` must be one of {sorted(splits)}, got {name!r}")
    chosen = splits[name]
    if isinstance(chosen, datasets.Dataset) and len(chosen) == 0:
        raise UsageError(f"the split {name!r} must hold at least one row, got an empty one")
    return chosen


def column_names(dataset: Any) -> list[str]:
    """Return the columns of a data set, also of one that is streamed."""
    return list(dataset.column_names or next(iter(dataset)))


def check_columns(dataset: Any, forms: Iterable[set[str]], flags: str) -> None:
    """Raise ``UsageError`` unless the columns hold one of ``forms``; the message lists both."""
    columns = column_names(dataset)
    if not any(form <= set(columns) for form in forms):
        wanted = " or ".join("+".join(sorted(form, reverse=True)) for form in forms)
        raise UsageError(f"the data must have the columns {wanted}, got {columns}; {flags}")


def check_texts(dataset: Any, names: Iterable[str]) -> None:
    """Raise ``UsageError``, with the row's number, where a column lacks a value or holds numbers.

    Streamed data are not read for it.
    """
    if not isinstance(dataset, datasets.Dataset):
        return
    for name in sorted(set(names) & set(dataset.column_names)):
        for number, table in enumerate(
            dataset.select_columns([name]).with_format("arrow").iter(batch_size=1000)
        ):
            if table.column(0).null_count:
                row = 1000 * number + table.column(0).is_null().to_pylist().index(True)
                raise UsageError(f"row {row + 1} of the data has no value in column {name!r}")
        feature = dataset.features[name]
        if name == "input_ids" and "int" not in str(feature):
            raise UsageError(f"column 'input_ids' must hold lists of token numbers, got {feature}")
        if isinstance(feature, datasets.Value) and "string" not in feature.dtype:
            raise UsageError(
                f"column {name!r} must hold text, got {feature.dtype} in row 1: "
                f"{dataset[0][name]!r}; write it in quotes, or make text of it by a template"
            )


def with_templates(
    dataset: Any, templates: dict[str, str | None], keep: tuple[str, ...] = ()
) -> Any:
    """Replace all columns but ``keep`` by those that ``templates`` (name -> template) make.

    ``{name}`` stands for a column's text, ``{name.part}`` for that of a part of an object, ``{{``
    for a brace; ``\\n``, ``\\t`` and ``\\\\`` as a shell passes them are a line end, a tab and a
    backslash.

    Raises:
        UsageError: only some templates are given, or one names an unknown column.
    """
    given = {name: text for name, text in templates.items() if text is not None}
    if not given:
        return dataset
    lacking = [f"--{name}_template" for name in templates if name not in given]
    if lacking:
        raise UsageError(f"templates go together: {' and '.join(lacking)} is missing")
    columns = column_names(dataset)
    features = dataset.features or {key: {} for key in columns}  # not known if streamed
    objects = [name for name in columns if isinstance(features[name], dict)]
    compiled = {name: _compile(name, text, columns, objects) for name, text in given.items()}

    def fill(row: dict[str, Any], number: int) -> dict[str, str]:
        return {
            name: "".join(
                text + ("" if field is None else _cell(row, field, number)) for text, field in parts
            )
            for name, parts in compiled.items()
        }

    others = [name for name in columns if name not in keep]
    return dataset.map(fill, with_indices=True, remove_columns=others)


def _compile(
    name: str, template: str, columns: list[str], objects: list[str]
) -> list[tuple[str, str | None]]:
    """Split a template into (literal text, column name or None); ``objects`` have parts."""
    template = re.sub(r"\\([nt\\])", lambda escape: _ESCAPES[escape[1]], template)
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"`--{name}_template` {template!r}: {error}; write a brace as {{{{ or }}}}"
        ) from error
    for _, field, spec, conversion in pieces:
        known = field is None or field in columns or field.split(".")[0] in objects
        if not known or spec or conversion:
            raise UsageError(
                f"`--{name}_template` has the field {field!r}, but the columns are {columns}"
            )
    return [(literal, field) for literal, field, _, _ in pieces]


def _cell(row: dict[str, Any], field: str, number: int) -> str:
    """Return a cell, or the named part of it, as text; raises ``UsageError`` with the row."""
    column, *path = [field] if field in row else field.split(".")
    value: Any = row[column]
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    place = f"row {number + 1} of the data"
    if value is None:
        raise UsageError(f"{place} has no value in column {field!r}")
    if isinstance(value, dict | list):
        held = f"an object with {sorted(value)}" if isinstance(value, dict) else "a list"
        raise UsageError(
            f"{place} holds {held} in column {field!r}, where a template needs text; name a part "
            f"of an object as {{{field}.part}}"
        )
    return str(value)
