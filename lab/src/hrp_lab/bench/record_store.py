"""Reads, writes and packs the records of an experiment.

The records of the experiment NAME lie in the folder ``NAME``, one JSON file a run, and in the file
``NAME.jsonl`` beside it, one record a line. Runs write single files; `pack` folds them into the
lines. Either path names both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hrp.cli.locks import held, lock_beside
from hrp.files import write_text
from hrp_lab.bench.record import Record, RecordError, RunSpec

PACKED_SUFFIX = ".jsonl"
_SHOWN = 10  # broken records that an error names


def records_folder(source: Path) -> Path:
    """Return the folder of single files, whether ``source`` is it or the packed file beside it."""
    return source.with_suffix("") if source.suffix == PACKED_SUFFIX else source


def packed_path(source: Path) -> Path:
    """Return the path of the packed file, whether ``source`` is it or the folder beside it."""
    folder = records_folder(source)
    folder = folder if folder.name else folder.resolve()
    return folder.with_name(folder.name + PACKED_SUFFIX)


def record_path(run: RunSpec, folder: Path) -> Path:
    """Return the path of the single file that ``run`` writes in ``folder``."""
    return folder / f"{run.run_id}.json"


def write_record(record: Record, folder: Path) -> Path:
    """Write ``record`` into ``folder``, over an earlier one of its run; whole or not at all."""
    return write_text(record_path(record.run, folder), record.to_json())


def load_records(source: Path) -> list[Record]:
    """Read all records of an experiment, single and packed, ordered by run id.

    Raises ``FileNotFoundError`` where there is none, and `RecordError` as `find_records` does.
    """
    folder, packed = records_folder(source), packed_path(source)
    if not folder.is_dir() and not packed.is_file():
        raise FileNotFoundError(
            f"'{folder}' is no folder and '{packed}' no file; give a benchmark's records"
        )
    records = find_records(source)
    if not records:
        raise FileNotFoundError(f"'{source}' holds no records; run `hrp-lab bench run` first")
    return [record for _, record in sorted(records.items())]


def load_all(sources: Sequence[Path]) -> list[Record]:
    """Read the records of several experiments; a run that several of them hold counts once.

    Raises:
        FileNotFoundError, RecordError: see `load_records`; or two records of a run differ.
    """
    origins: dict[str, tuple[Path, Record]] = {}
    for source in sources:
        for record in load_records(source):
            first, other = origins.setdefault(record.run_id, (source, record))
            if other.to_line() != record.to_line():
                raise RecordError(
                    f"'{first}' and '{source}' hold different records of run {record.run_id}; "
                    "give one of them"
                )
    return [record for _, record in origins.values()]


def find_records(source: Path) -> dict[str, Record]:
    """Read an experiment's records by run id; none where nothing has been written yet.

    A run may be both packed and in a single file: until `pack` has removed that file, or because
    the run was done again. The single file counts, unless it is the older one.

    Raises:
        RecordError: files or lines that are no records, two of one run, or an older single file
            that differs from the packed record; names them all.
    """
    broken: list[str] = []
    packed = _parsed(_lines(packed_path(source)), broken)
    texts = [(f"'{path}'", _content(path)) for path in _single_files(source)]
    single = _parsed(texts, broken)
    for run_id in packed.keys() & single.keys():
        (line, kept), (file, again) = packed[run_id], single[run_id]
        if again.ended < kept.ended:
            broken.append(f"{file}: an older record of run {run_id} than {line}")
    if broken:
        raise RecordError(
            f"records that cannot be used: {len(broken)}; repair them or move them elsewhere:\n  "
            + "\n  ".join(broken[:_SHOWN])
        )
    return {run_id: record for run_id, (_, record) in (packed | single).items()}


def _content(path: Path) -> bytes:
    if not path.is_file():  # a pipe would be waited for, a device has no end
        raise RecordError(f"'{path}' is no file; move it elsewhere")
    return path.read_bytes()


def _single_files(source: Path) -> list[Path]:
    """List the files of single records; hidden folders are those of writers at work."""
    folder = records_folder(source)
    return sorted(
        path
        for path in folder.rglob("*.json")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _lines(packed: Path) -> list[tuple[str, bytes]]:
    """Return every line of a packed file, with its place for error messages."""
    if not packed.exists():
        return []
    lines = _content(packed).removesuffix(b"\n").split(b"\n")
    return [(f"'{packed}', line {number}", line) for number, line in enumerate(lines, start=1)]


def _parsed(texts: Sequence[tuple[str, bytes]], broken: list[str]) -> dict[str, tuple[str, Record]]:
    """Parse records by run id, with their places; what is no record is added to ``broken``."""
    records: dict[str, tuple[str, Record]] = {}
    for place, text in texts:
        try:
            record = Record.from_json(text)
            if record.run_id in records:
                raise RecordError(f"a second record of run {record.run_id}")
            records[record.run_id] = place, record
        except RecordError as error:
            broken.append(f"{place}: {error}")
    return records


def missing(
    runs: Iterable[RunSpec], records: Mapping[str, Record], retry_failed: bool = False
) -> list[RunSpec]:
    """Return the runs that have no record yet, in the order given, each once.

    A failure is a record too: with ``retry_failed`` such runs count as missing.
    """
    unique = {run.run_id: run for run in runs}
    done = {run_id for run_id, r in records.items() if not (retry_failed and r.status == "failed")}
    return [run for run_id, run in unique.items() if run_id not in done]


def pack(source: Path) -> tuple[Path, int]:
    """Fold the single files of an experiment into its packed file, loss curves rounded.

    A process killed at any moment loses nothing: the packed file is written whole before the
    first single file is removed. A file that has been written anew in the meantime stays.

    Returns the packed file and the number of single files folded into it.

    Raises:
        FileNotFoundError, RecordError: see `load_records`; nothing is changed.
        BlockingIOError: another process is packing these records, or writing more of them.
    """
    folder, packed = records_folder(source), packed_path(source)
    with held(lock_beside(folder), "hrp-lab bench pack", folder):
        texts = {path: _content(path) for path in _single_files(source)}
        records = load_records(source)
        if texts:
            write_text(packed, "".join(record.to_line() for record in records))
        for path, text in texts.items():
            if path.read_bytes() == text:
                path.unlink()
    return packed, len(texts)
