import dataclasses
import json
import math
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.synthetic import full_record
from hrp_lab.bench.record import Record, RecordError, RunSpec, git_state

RUN = RunSpec("demo", "lora", "gsm8k", 0, 1e-3, {"rank": 4, "hrp": {"preheat_rank": 64}})


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


def test_a_line_is_one_line_with_its_curves_alone_rounded_to_five_digits():
    record = dataclasses.replace(
        full_record(),
        metrics={"eval_loss": 1.23456789},
        losses=((5, 1.23456789), (10, 0.000123456789), (15, math.inf)),
        preheat_losses=(12345.6789, math.nan),
    )
    line = record.to_line()
    assert line.count("\n") == 1
    assert '"losses":[[5,1.2346],[10,0.00012346],[15,null]]' in line
    assert '"preheat_losses":[12346.0,null]' in line
    back = Record.from_json(line)
    assert back.to_line() == line
    exact = {"losses": (), "preheat_losses": ()}
    assert dataclasses.replace(back, **exact) == dataclasses.replace(record, **exact)


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


OK = {"status": "ok", "metrics": {"eval_loss": 1.0}}


@pytest.mark.parametrize("field", ["learning_rate", "seed", "losses", "metrics", "wall_s"])
def test_a_number_beyond_all_floats_is_refused_as_any_wrong_one(field):
    fields = json.loads(Record(RUN, "ok", metrics={"eval_loss": 1.0}, losses=((1, 2.0),)).to_json())
    where = {"losses": fields["losses"][0], "metrics": fields["metrics"], "wall_s": fields["costs"]}
    key = {"losses": 1, "metrics": "eval_loss"}.get(field, field)
    where.get(field, fields["run"])[key] = 10**400
    with pytest.raises(RecordError):
        Record.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "failed"}, "`reason` must say why the status is 'failed'"),
        ({"status": "done"}, "`status` must be 'ok' or 'failed' or 'not-applicable'"),
        ({"status": "ok"}, "`metrics` must not be empty"),
        (
            {"status": "ok", "metrics": {"eval_loss": math.nan}},
            r"must be finite, got \['eval_loss'",
        ),
        (OK | {"device": 7}, "`device` must be text in quotes, got 7"),
        (OK | {"started": ["now"]}, "`started` must be text"),
        (OK | {"versions": {"torch": 2}}, "`versions` must be a list of text"),
        (OK | {"git_commit": math.inf}, "`git_commit` must be text"),
        (OK | {"git_dirty": "yes"}, "`git_dirty` must be true or false or null"),
    ],
)
def test_a_status_that_is_not_borne_out_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(run=RUN, **fields)


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
