"""Records on disk: single files, packed lines, both; broken, killed, doubled."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.faults import fault
from helpers.synthetic import full_record
from hrp.cli.locks import held, lock_beside
from hrp_lab.bench.record import Record, RecordError, RunSpec
from hrp_lab.bench.record_store import (
    find_records,
    load_all,
    load_records,
    missing,
    pack,
    packed_path,
    record_path,
    write_record,
)

RUN = RunSpec("demo", "lora", "gsm8k", 0, 1e-3, {"rank": 4})


def ok(run: RunSpec, loss: float = 1.0, ended: str = "") -> Record:
    return Record(run, "ok", metrics={"eval_loss": loss}, losses=((1, loss / 3),), ended=ended)


def lines(records) -> list[str]:
    return [record.to_line() for record in records]


def test_a_record_reads_back_as_it_was_written(tmp_path):
    record = full_record(nested={"shapes": [[1, 2], [3, 4]], "flag": True, "none": None})
    path = write_record(record, tmp_path)
    assert load_records(tmp_path) == [record]
    assert path == record_path(record.run, tmp_path) == tmp_path / f"{record.run_id}.json"


def test_the_folder_and_the_packed_file_name_each_other(tmp_path, monkeypatch):
    assert packed_path(tmp_path / "gsm8k-v1.5") == tmp_path / "gsm8k-v1.5.jsonl"
    assert packed_path(tmp_path / "gsm8k-v1.5.jsonl") == tmp_path / "gsm8k-v1.5.jsonl"
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path / "demo")
    write_record(ok(RUN), tmp_path / "demo")
    pack(record_path(RUN, tmp_path / "demo").parent.relative_to(tmp_path / "demo"))
    assert [path.name for path in tmp_path.rglob("*.json*")] == ["demo.jsonl"]


def test_packed_single_and_mixed_records_read_the_same(tmp_path):
    records = [full_record(seed=seed) for seed in range(6)]
    for record in records:
        write_record(record, tmp_path / "single")
    for record in records[:4]:
        write_record(record, tmp_path / "mixed" / f"part{record.run.seed % 2}")
    assert pack(tmp_path / "mixed") == (tmp_path / "mixed.jsonl", 4)
    for record in records[3:]:  # one of them is packed too, as after a kill
        write_record(record, tmp_path / "mixed")
    expected = lines(load_records(tmp_path / "single"))
    assert lines(load_records(tmp_path / "mixed")) == expected
    assert lines(load_records(tmp_path / "mixed.jsonl")) == expected
    assert pack(tmp_path / "mixed.jsonl") == (tmp_path / "mixed.jsonl", 3)
    assert not list((tmp_path / "mixed").rglob("*.json"))
    assert (tmp_path / "mixed.jsonl").read_text() == "".join(expected)
    run_ids = [record.run_id for record in load_records(tmp_path / "mixed")]
    assert run_ids == sorted(record.run_id for record in records)


def test_packing_again_changes_nothing_and_keeps_what_is_no_record(tmp_path):
    write_record(ok(RUN), tmp_path / "demo")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    pack(tmp_path / "demo")
    before = (tmp_path / "demo.jsonl").stat()
    assert pack(tmp_path / "demo")[1] == 0
    assert (tmp_path / "demo.jsonl").stat() == before
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["notes.txt"]


def test_a_newer_single_file_replaces_the_packed_record(tmp_path):
    failed = Record(RUN, "failed", "out of memory", ended="2026-01-01T00:00:00+00:00")
    write_record(failed, tmp_path / "demo")
    pack(tmp_path / "demo")
    again = ok(RUN, ended="2026-01-02T00:00:00+00:00")
    write_record(again, tmp_path / "demo")
    assert load_records(tmp_path / "demo") == [again]
    pack(tmp_path / "demo")
    assert lines(load_records(tmp_path / "demo")) == [again.to_line()]


def test_an_older_single_file_is_an_error_that_names_both_and_loses_neither(tmp_path):
    write_record(ok(RUN, ended="2026-01-02T00:00:00+00:00"), tmp_path / "demo")
    pack(tmp_path / "demo")
    path = write_record(ok(RUN, 2.0, "2026-01-01T00:00:00+00:00"), tmp_path / "demo")
    packed = (tmp_path / "demo.jsonl").read_bytes()
    with pytest.raises(RecordError, match="an older record of run") as caught:
        pack(tmp_path / "demo")
    assert f"'{path}'" in str(caught.value)
    assert f"'{tmp_path / 'demo.jsonl'}', line 1" in str(caught.value)
    assert path.exists()
    assert (tmp_path / "demo.jsonl").read_bytes() == packed


def test_a_file_that_a_run_writes_while_it_is_packed_stays(tmp_path, monkeypatch):
    write_record(ok(RUN), tmp_path / "demo")
    again = ok(RUN, 2.0)

    def late(source):
        records = load_records(source)
        write_record(again, tmp_path / "demo")
        return records

    monkeypatch.setattr("hrp_lab.bench.record_store.load_records", late)
    pack(tmp_path / "demo")
    assert load_records(tmp_path / "demo") == [again]


def test_records_that_another_process_writes_are_not_packed(tmp_path):
    path = write_record(ok(RUN), tmp_path / "demo")
    with (
        held(lock_beside(tmp_path / "demo"), "hrp-lab bench run", tmp_path / "demo"),
        pytest.raises(BlockingIOError, match="is being written by `hrp-lab bench run`"),
    ):
        pack(tmp_path / "demo")
    assert path.exists()
    pack(tmp_path / "demo")
    assert not path.exists()


def test_the_same_run_in_two_places_counts_once_and_must_not_differ(tmp_path):
    other = dataclasses.replace(RUN, seed=1)
    for folder in ("a", "b"):
        write_record(ok(RUN), tmp_path / folder)
    write_record(ok(other), tmp_path / "b")
    pack(tmp_path / "a")
    sources = [tmp_path / "a.jsonl", tmp_path / "b"]
    assert [record.run for record in load_all(sources)] == [RUN, other]
    path = write_record(ok(RUN, 2.0), tmp_path / "b")
    with pytest.raises(RecordError, match=f"hold different records of run {RUN.run_id}") as caught:
        load_all(sources)
    assert all(f"'{source}'" in str(caught.value) for source in sources)
    assert path.exists()


def edited(**changes):
    fields = json.loads(full_record().to_json())
    return json.dumps(fields | changes)


BROKEN = [
    ("{", "not JSON"),
    ("", "not JSON"),
    ("<<<<<<< ours", "not JSON"),
    ("\udcff", "not JSON"),
    ("[1]", "no JSON object with `schema` 'hrp-record'"),
    ("{}", "no JSON object with `schema` 'hrp-record'"),
    ("[" * 100_000, "not JSON"),
    (edited(schema_version=99), "`schema_version` must be 1, got 99"),
    (edited(surprise=1), "unexpected keyword argument 'surprise'"),
    (edited(run={"arm": "lora"}), "missing 5|missing 4"),
    (edited(losses=[[1]]), "its fields are not those of a record"),
    (edited(metrics=None), "its fields are not those of a record"),
    (edited(run_id="0" * 16), "`run_id` '0000000000000000' is not that of its run"),
    (full_record().to_json()[:-40], "not JSON"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, message):
    write_record(full_record(), tmp_path)
    (tmp_path / "broken.json").write_text(text, errors="surrogateescape")
    with pytest.raises(RecordError, match=message) as caught:
        load_records(tmp_path)
    assert "records that cannot be used: 1;" in str(caught.value)
    assert "broken.json'" in str(caught.value)


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_line_is_named_with_file_and_number_and_kept(tmp_path, text, message):
    packed, good = tmp_path / "demo.jsonl", [full_record(seed=seed).to_line() for seed in (0, 1)]
    broken = text.replace("\n", " ") + "\n"
    packed.write_text(good[0] + broken + good[1], errors="surrogateescape")
    write_record(full_record(seed=2), tmp_path / "demo")
    before = packed.read_bytes()
    for use in (load_records, find_records, pack):
        with pytest.raises(RecordError, match=message) as caught:
            use(tmp_path / "demo")
        assert "records that cannot be used: 1;" in str(caught.value)
        assert f"'{packed}', line 2: " in str(caught.value)
        assert "remove" not in str(caught.value)
        assert "delete" not in str(caught.value)
    assert packed.read_bytes() == before
    assert len(list((tmp_path / "demo").iterdir())) == 1


def test_a_packed_file_that_ends_in_the_middle_of_a_line_is_an_error(tmp_path):
    packed = tmp_path / "demo.jsonl"
    whole = "".join(full_record(seed=seed).to_line() for seed in range(3))
    packed.write_text(whole[:-100])
    with pytest.raises(RecordError, match=r"demo\.jsonl', line 3: not JSON"):
        load_records(packed)
    packed.write_text(whole[:-1])  # only the last line's end is missing: an editor may drop it
    assert len(load_records(packed)) == 3


def test_two_files_or_lines_with_one_run_are_an_error_not_a_double(tmp_path):
    path = write_record(full_record(), tmp_path / "demo")
    (tmp_path / "demo" / "copy.json").write_text(path.read_text())
    (tmp_path / "twice.jsonl").write_text(2 * full_record().to_line())
    for source in (tmp_path / "demo", tmp_path / "twice"):
        with pytest.raises(RecordError, match="a second record of run"):
            load_records(source)


def test_no_folder_and_no_records_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is no folder and '.*\.jsonl' no file"):
        load_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no records"):
        load_records(tmp_path)
    assert find_records(tmp_path / "nowhere") == {}


def test_records_in_sub_folders_are_found(tmp_path):
    for seed in (0, 1):
        write_record(full_record(seed=seed), tmp_path / f"part{seed}")
    assert len(load_records(tmp_path)) == 2


def test_only_what_has_no_record_is_missing_and_failures_count_when_asked(tmp_path):
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(4)]
    write_record(ok(runs[1]), tmp_path)
    write_record(Record(runs[2], "failed", "out of memory"), tmp_path)
    write_record(Record(runs[3], "not-applicable", "embeddings only"), tmp_path)
    records = find_records(tmp_path)
    assert missing([*runs, runs[0]], records) == [runs[0]]
    assert missing(runs, records, retry_failed=True) == [runs[0], runs[2]]
    assert missing(runs, {}) == runs


def test_writing_again_replaces_the_record_of_the_same_run(tmp_path):
    write_record(Record(RUN, "failed", "out of memory"), tmp_path)
    write_record(ok(RUN), tmp_path)
    assert [record.status for record in load_records(tmp_path)] == ["ok"]


def test_a_full_disk_leaves_no_file_behind_and_packs_nothing(tmp_path, monkeypatch):
    path = write_record(full_record(), tmp_path / "demo")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(full_record(seed=1), tmp_path / "demo")
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path / "demo")
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


WRITER = """
import sys; from pathlib import Path
from helpers.synthetic import full_record
from hrp_lab.bench.record_store import write_record
print("up", flush=True)
for seed in range(10**6):
    write_record(full_record(seed=seed % 50, steps=2000), Path(sys.argv[1]))
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_records(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        with writer:
            writer.stdout.readline()
            time.sleep(0.05 + 0.03 * attempt)
            writer.send_signal(signal.SIGKILL)
        assert load_records(tmp_path)


# Packs a copy of the folder again and again, each time in a process of its own that is killed one
# moment later: before or after each renaming and each removal. Prints the moments' number.
PACKER = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from hrp_lab.bench.record_store import pack

source, copies = map(Path, sys.argv[1:])

def killing(act, moments):
    def hooked(*arguments, **options):
        if next(moments) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = act(*arguments, **options)
        if next(moments) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return hooked

for moment in itertools.count():
    copy = copies / str(moment)
    shutil.copytree(source, copy)
    child = os.fork()
    if child == 0:
        moments = itertools.count(-moment)
        Path.replace = killing(Path.replace, moments)
        Path.unlink = killing(Path.unlink, moments)
        pack(copy / "demo")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(moment)
        break
"""


def test_packing_killed_before_or_after_any_change_loses_nothing(tmp_path):
    source = tmp_path / "source"
    for seed in range(3):
        write_record(full_record(seed=seed), source / "demo")
    pack(source / "demo")
    for seed in range(1, 5):  # two that are packed already, two new ones
        write_record(full_record(seed=seed), source / "demo")
    expected = lines(load_records(source / "demo"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", PACKER, source, tmp_path / "copies"],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    copies = sorted((tmp_path / "copies").iterdir(), key=lambda copy: int(copy.name))
    # one renaming, the removal of three files of locks and of four records, before and after each
    assert len(copies) - 1 == int(ended.stdout) == 16
    singles = [len(list((copy / "demo").glob("*.json"))) for copy in copies]
    assert singles[:4] == [4] * 4
    assert singles[-1] == 0
    for copy in copies:
        assert lines(load_records(copy / "demo")) == expected
        pack(copy / "demo")
        assert (copy / "demo.jsonl").read_text() == "".join(expected)
        assert not list((copy / "demo").glob("*.json"))


@fault(
    "Hostile or damaged input",
    "a pipe or a device as a record",
    command="hrp-lab bench",
    outcome="refused at once",
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("place", ["single", "packed"])
def test_what_is_no_file_in_place_of_a_record_is_refused_without_waiting(tmp_path, kind, place):
    folder = tmp_path / "demo"
    write_record(ok(RUN), folder)
    path = folder / "x.json" if place == "single" else tmp_path / "demo.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (load_records, pack):
        with pytest.raises(RecordError, match="no file"):
            read(folder)
    assert record_path(RUN, folder).exists()
