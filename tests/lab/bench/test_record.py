import dataclasses
import doctest
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hrp_lab.bench.record
from helpers.synthetic import full_record
from hrp_lab.bench.record import (
    Record,
    RecordError,
    RunSpec,
    git_state,
    load_records,
    missing,
    record_path,
    write_record,
)

RUN = RunSpec("demo", "lora", "gsm8k", 0, 1e-3, {"rank": 4, "hrp": {"preheat_rank": 64}})


def test_the_doctests_hold():
    assert doctest.testmod(hrp_lab.bench.record).failed == 0


def test_a_record_reads_back_as_it_was_written(tmp_path):
    record = full_record(nested={"shapes": [[1, 2], [3, 4]], "flag": True, "none": None})
    path = write_record(record, tmp_path)
    assert load_records(tmp_path) == [record]
    assert path == record_path(record.run, tmp_path) == tmp_path / f"{record.run_id}.json"


@settings(max_examples=40, deadline=None)
@given(
    arm=st.text(min_size=1),
    rate=st.floats(1e-12, 10),
    config=st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
    ),
    metrics=st.dictionaries(
        st.text(), st.floats(allow_nan=False, allow_infinity=False), min_size=1
    ),
)
def test_any_names_and_settings_survive_json(arm, rate, config, metrics):
    record = Record(RunSpec("e", arm, "t", 3, rate, config), "ok", metrics=metrics)
    assert Record.from_json(record.to_json()) == record


def test_losses_that_are_not_finite_stay_strict_json_and_read_back_as_nan():
    record = Record(
        RUN, "failed", "the loss became NaN at step 2", losses=((1, 3.0), (2, math.inf))
    )
    back = Record.from_json(record.to_json())
    json.loads(record.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert back.losses[0] == (1, 3.0)
    assert math.isnan(back.losses[1][1])


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "other"},
        {"arm": "pissa"},
        {"task": "glue"},
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"config": {"rank": 8, "hrp": {"preheat_rank": 64}}},
        {"config": {"rank": 4, "hrp": {"preheat_rank": 65}}},
    ],
)
def test_the_run_id_depends_on_every_setting(change):
    assert dataclasses.replace(RUN, **change).run_id != RUN.run_id


def test_the_run_id_is_the_same_in_every_process_and_for_every_order_of_settings():
    assert RUN.run_id == "feb6e875c3514a5a"
    turned = {"hrp": {"preheat_rank": 64}, "rank": 4}
    assert dataclasses.replace(RUN, config=turned).run_id == RUN.run_id
    assert dataclasses.replace(RUN, learning_rate=0.001).run_id == RUN.run_id


def test_tuples_and_lists_in_settings_are_one_run():
    one, other = (dataclasses.replace(RUN, config={"x": x}) for x in ((1, 2), [1, 2]))
    assert one == other
    assert one.run_id == other.run_id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arm": ""}, "`arm` must be a name, got ''"),
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be finite and > 0"),
        ({"config": {"x": math.nan}}, "not JSON compliant"),
    ],
)
def test_a_run_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "failed"}, "`reason` must say why the status is 'failed'"),
        ({"status": "done"}, "`status` must be one of 'ok', 'failed', 'not-applicable'"),
        ({"status": "ok"}, "`metrics` must not be empty"),
        (
            {"status": "ok", "metrics": {"eval_loss": math.nan}},
            r"must be finite, got \['eval_loss'",
        ),
    ],
)
def test_a_status_that_is_not_borne_out_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(run=RUN, **fields)


def edited(**changes):
    fields = json.loads(full_record().to_json())
    return json.dumps(fields | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object with `schema` 'hrp-record'"),
        ("{}", "no JSON object with `schema` 'hrp-record'"),
        ("[" * 100_000, "not JSON"),
        (edited(schema_version=99), "`schema_version` must be 1, got 99"),
        (edited(surprise=1), "unexpected keyword argument 'surprise'"),
        (edited(run={"arm": "lora"}), "missing 5|missing 4"),
        (edited(losses=[[1]]), "its fields are not those of a record"),
        (edited(metrics=None), "its fields are not those of a record"),
        (edited(run_id="0" * 16), "`run_id` '0000000000000000' is not that of its run"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, message):
    write_record(full_record(), tmp_path)
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        load_records(tmp_path)
    assert "1 of 2 files are not usable records" in str(caught.value)
    assert "broken.json" in str(caught.value)


def test_two_files_with_one_run_are_an_error_not_a_double(tmp_path):
    path = write_record(full_record(), tmp_path)
    (tmp_path / "copy.json").write_text(path.read_text())
    with pytest.raises(RecordError, match="a second record of run"):
        load_records(tmp_path)


def test_no_folder_and_no_records_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no records"):
        load_records(tmp_path)


def test_records_in_sub_folders_are_found(tmp_path):
    for seed in (0, 1):
        write_record(full_record(seed=seed), tmp_path / f"part{seed}")
    assert len(load_records(tmp_path)) == 2


def test_only_what_has_no_record_is_missing_and_failures_count_when_asked(tmp_path):
    runs = [dataclasses.replace(RUN, seed=seed) for seed in range(4)]
    write_record(Record(runs[1], "ok", metrics={"eval_loss": 1.0}), tmp_path)
    write_record(Record(runs[2], "failed", "out of memory"), tmp_path)
    write_record(Record(runs[3], "not-applicable", "embeddings only"), tmp_path)
    assert missing([*runs, runs[0]], tmp_path) == [runs[0]]
    assert missing(runs, tmp_path, retry_failed=True) == [runs[0], runs[2]]
    assert missing(runs, tmp_path / "nowhere") == runs


def test_writing_again_replaces_the_record_of_the_same_run(tmp_path):
    write_record(Record(RUN, "failed", "out of memory"), tmp_path)
    write_record(Record(RUN, "ok", metrics={"eval_loss": 1.0}), tmp_path)
    assert [record.status for record in load_records(tmp_path)] == ["ok"]


def test_a_full_disk_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(full_record(), tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys; from pathlib import Path
from helpers.synthetic import full_record
from hrp_lab.bench.record import write_record
print("up", flush=True)
for seed in range(10**6):
    write_record(full_record(seed=seed % 50, steps=2000), Path(sys.argv[1]))
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_records(tmp_path):
    environment = os.environ | {"PYTHONPATH": "tests"}
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        with writer:
            writer.stdout.readline()
            time.sleep(0.05 + 0.03 * attempt)
            writer.send_signal(signal.SIGKILL)
        assert load_records(tmp_path)


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_git_state_names_the_commit_and_whether_tracked_files_differ(tmp_path):
    assert git_state(tmp_path / "nowhere") == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "new-record.json").write_text("{}")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "a.txt").write_text("two")
    assert git_state(tmp_path) == (commit, True)
