from __future__ import annotations

import itertools
import os

import pytest
import yaml

from helpers.faults import fault
from helpers.tiny_bench import BASE
from hrp_lab.bench.protocol import Experiment, experiment_from, lines, load_experiment, plan
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.cli.bench_commands import main as bench

GRID = [1e-3, 4e-3, 2e-3]


def made(**changes) -> Experiment:
    return experiment_from(BASE | {"learning_rates": GRID, "seeds": [0, 1]} | changes)


def recorded(runs: list[RunSpec], loss) -> dict[str, Record]:
    """Records of runs, with ``loss(run)``; None is a failure."""
    records = {}
    for run in runs:
        value = loss(run)
        done = {"status": "failed", "reason": "diverged"} if value is None else {
            "status": "ok", "metrics": {"eval_loss": value}}  # fmt: skip
        records[run.run_id] = Record(run, **done)
    return records


def rates(runs: list[RunSpec]) -> list[float]:
    return list(dict.fromkeys(run.learning_rate for run in runs))


def test_all_arms_and_seeds_of_one_rate_come_before_the_next():
    full = {"name": "full", "learning_rates": [1e-4, 2e-4]}
    runs = plan(made(arms=["lora", full]), {})
    order = [(run.arm, run.learning_rate, run.seed) for run in runs]
    assert order[:8] == [
        ("lora", 1e-3, 0), ("lora", 1e-3, 1), ("full", 1e-4, 0), ("full", 1e-4, 1),
        ("lora", 4e-3, 0), ("lora", 4e-3, 1), ("full", 2e-4, 0), ("full", 2e-4, 1),
    ]  # fmt: skip
    assert len(order) == 10


def test_no_run_is_planned_twice():
    hrp = {"name": "hrp-b", "hrp": {"preheat_rank": [4, 8], "preheat_steps": [1, 2, 3]}}
    runs = plan(made(arms=["lora", hrp], budgets=["equal_total", "equal_finetuning"]), {})
    assert len({run.run_id for run in runs}) == len(runs) == 6 * (1 + 2 * 6)


def test_a_list_in_an_arm_makes_one_arm_a_value():
    hrp = {"name": "hrp-ab", "hrp": {"preheat_rank": [4, 8], "preheat_steps": [1, 2]}}
    settings = [line.config["hrp"] for line in lines(made(arms=[hrp]))]
    pairs = [(section["preheat_rank"], section["preheat_steps"]) for section in settings]
    assert pairs == list(itertools.product([4, 8], [1, 2]))


def test_a_section_changes_only_the_runs_of_arms_that_use_it():
    arms = ["lora", "hrp-a", "gradient-svd"]
    before = plan(made(arms=arms), {})
    after = plan(made(arms=arms, hrp={"preheat_rank": 6}), {})
    changed = {run.arm for run, other in zip(before, after, strict=True)
               if run.run_id != other.run_id}  # fmt: skip
    assert changed == {"hrp-a"}


def test_an_arm_that_is_charged_nothing_runs_once_for_both_budgets():
    runs = plan(made(arms=["lora", "hrp-a"], budgets=["equal_total", "equal_finetuning"]), {})
    budgets = {(run.arm, run.config["budget"]) for run in runs}
    assert budgets == {
        ("lora", "equal_total"), ("hrp-a", "equal_total"), ("hrp-a", "equal_finetuning"),
    }  # fmt: skip


def test_a_grid_widens_towards_a_best_rate_on_its_edge_and_no_further_than_told():
    experiment = made(widen=2)
    records = recorded(plan(experiment, {}), lambda run: 1 - run.learning_rate)
    first = plan(experiment, records)
    assert rates(first)[3:] == [8e-3]
    records |= recorded(first, lambda run: 1 - run.learning_rate)
    second = plan(experiment, records)
    assert rates(second)[3:] == [8e-3, 1.6e-2]
    records |= recorded(second, lambda run: 1 - run.learning_rate)
    assert plan(experiment, records) == second


def test_a_grid_whose_best_rate_is_inside_does_not_widen():
    experiment = made(widen=2)
    records = recorded(plan(experiment, {}), lambda run: abs(run.learning_rate - 2e-3))
    assert rates(plan(experiment, records)) == GRID


def test_a_rate_that_fails_bounds_the_grid():
    experiment = made(widen=2)
    records = recorded(
        plan(experiment, {}),
        lambda run: None if run.learning_rate == 4e-3 else 1 - run.learning_rate,
    )
    assert rates(plan(experiment, records)) == GRID


def test_an_arm_without_any_result_does_not_widen():
    experiment = made(widen=2)
    records = recorded(plan(experiment, {}), lambda run: None)
    assert rates(plan(experiment, records)) == GRID


def test_a_grid_widens_only_once_it_is_complete():
    experiment = made(widen=1)
    runs = plan(experiment, {})
    records = recorded(runs[:-1], lambda run: 1 - run.learning_rate)
    assert plan(experiment, records) == runs


def grown(experiment: Experiment, loss) -> dict[str, Record]:
    """Records of all that the plan comes to, planned anew after each round."""
    records: dict[str, Record] = {}
    while new := [run for run in plan(experiment, records) if run.run_id not in records]:
        records |= recorded(new, loss)
    return records


def seeds_by_rate(records: dict[str, Record]) -> dict[float, set[int]]:
    seeds: dict[float, set[int]] = {}
    for record in records.values():
        seeds.setdefault(record.run.learning_rate, set()).add(record.run.seed)
    return dict(sorted(seeds.items()))


SCREENED = {
    "learning_rates": [2e-3, 5e-4, 1e-3, 4e-3, 8e-3], "seeds": [0, 1, 2], "screening_seeds": 1,
}  # fmt: skip


GRID_FROM_LOW = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]


def test_after_screening_the_other_seeds_run_the_best_rate_and_those_beside_it():
    experiment = made(**SCREENED)
    first = plan(experiment, {})
    assert [run.seed for run in first] == [0, 1, 2, 0, 0, 0, 0]
    assert rates(first[:3]) == [2e-3]
    seeds = seeds_by_rate(grown(experiment, lambda run: abs(run.learning_rate - 2e-3)))
    assert seeds == {5e-4: {0}, 1e-3: {0, 1, 2}, 2e-3: {0, 1, 2}, 4e-3: {0, 1, 2}, 8e-3: {0}}


def test_every_arm_s_best_rate_has_all_its_seeds_before_any_arm_s_neighbours():
    experiment = made(**SCREENED, arms=["lora", "gaussian"])
    first = {run.run_id: run for run in plan(experiment, {})}
    records = recorded(list(first.values()), lambda run: abs(run.learning_rate - 1e-3))
    added = [run for run in plan(experiment, records) if run.run_id not in first]
    assert [(run.arm, run.learning_rate) for run in added[:4]] == [
        ("lora", 1e-3), ("lora", 1e-3), ("gaussian", 1e-3), ("gaussian", 1e-3),
    ]  # fmt: skip
    assert len(added) == 8


def test_a_plan_names_each_run_once():
    experiment = made(**SCREENED)
    records = grown(experiment, lambda run: abs(run.learning_rate - 2e-3))
    runs = [run.run_id for run in plan(experiment, records)]
    assert len(runs) == len(set(runs)) == len(records)


def test_a_grid_is_widened_again_where_all_seeds_prefer_its_edge():
    def loss(run: RunSpec) -> float:  # the first seed alone prefers a rate inside the grid
        return abs(run.learning_rate - (4e-3 if run.seed == 0 else 3.2e-2))

    seeds = seeds_by_rate(grown(made(**SCREENED, widen=2), loss))
    assert seeds[1.6e-2] == seeds[3.2e-2] == {0, 1, 2}
    assert 6.4e-2 not in seeds


def test_a_best_rate_that_only_the_screening_seed_likes_loses_and_its_rival_gets_neighbours():
    def loss(run: RunSpec) -> float:
        return abs(run.learning_rate - (2e-3 if run.seed == 0 else 4e-3))

    seeds = seeds_by_rate(grown(made(**SCREENED | {"learning_rates": GRID_FROM_LOW}), loss))
    assert seeds == {
        5e-4: {0, 1, 2}, 1e-3: {0, 1, 2}, 2e-3: {0, 1, 2}, 4e-3: {0, 1, 2}, 8e-3: {0, 1, 2},
    }  # fmt: skip


def test_screening_widens_the_grid_before_the_other_seeds_run():
    seeds = seeds_by_rate(grown(made(**SCREENED, widen=2), lambda run: 1 - run.learning_rate))
    assert list(seeds)[-2:] == [1.6e-2, 3.2e-2]
    assert seeds[3.2e-2] == seeds[1.6e-2] == {0, 1, 2}
    assert seeds[8e-3] == {0}


def test_screening_an_arm_that_always_fails_ends():
    assert seeds_by_rate(grown(made(**SCREENED), lambda run: None))[1e-3] == {0}


def test_a_task_may_have_its_own_steps():
    tasks = ["gsm8k", {"name": "glue-cola", "steps": 7, "options": {"max_length": 32}}]
    configs = {run.task: run.config for run in plan(made(tasks=tasks), {})}
    assert configs["glue-cola"]["steps"] == 7
    assert configs["glue-cola"]["task"] == {"max_length": 32}
    assert configs["glue-cola"]["metric"] == "matthews_correlation"
    assert (configs["gsm8k"]["steps"], configs["gsm8k"]["metric"]) == (BASE["steps"], "eval_loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["lora", "lorra"]}, "`arms` must be one of .* got 'lorra'"),
        ({"tasks": ["gsm9k"]}, "`tasks` must be one of .* got 'gsm9k'"),
        ({"arms": []}, "`arms` must not be empty"),
        ({"seeds": []}, "`seeds` must not be empty"),
        ({"learning_rates": []}, "`learning_rates` must not be empty"),
        ({"budgets": []}, "`budgets` must not be empty"),
        ({"budgets": ["free"]}, "`budgets` must be a list of 'equal_total' or .* got .'free'"),
        ({"learning_rates": [0]}, "`learning_rates` must be finite and > 0"),
        ({"preheat": {}}, r"unknown key\(s\) \['preheat'\]"),
        ({"arms": [{"name": "lora", "rate": 1}]}, r"unknown key\(s\) \['rate'\]"),
        ({"arms": [{"rank": 1}]}, "a name or a mapping with `name`"),
        ({"arms": ["hrp-a"], "hrp": {"rank": 1}}, r"unknown key\(s\) \['rank'\] in hrp"),
        ({"dtype": "float16"}, "`dtype` must be 'float32' or 'bfloat16', got 'float16'"),
        ({"steps": 0}, "`steps` must be an integer >= 1"),
    ],
)
def test_a_slip_in_the_file_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(experiment_from(BASE | changes), {})


def test_what_the_file_lacks_is_named(tmp_path):
    path = tmp_path / "short.yaml"
    lacking = {k: v for k, v in BASE.items() if k not in ("model", "steps")}
    path.write_text(yaml.safe_dump(lacking))
    with pytest.raises(ValueError, match=r"lacks \['model', 'steps'\]; mend it"):
        load_experiment(path)


@fault(
    "Hostile or damaged input",
    "`experiment: ../../outside`",
    command="hrp-lab bench",
    outcome="refused",
)
@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/b", "..", ".hidden", "a\\b", "\x1b[2J", "a\0b", 7]
)
def test_an_experiment_s_name_that_is_no_folder_s_is_refused(name):
    with pytest.raises(ValueError, match=r"`experiment` must be (of letters, digits|text)"):
        experiment_from(BASE | {"experiment": name})


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(9 * [f'*{before}'])}]\n"
    for before, after in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "mapping"),
        ("a: [", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("a: &a [*a]", "at most 10000 values"),
        (BOMB, "at most 10000 values"),
        ("[" * 5000, "at most 10000 values"),
        ("x" * 2**21, "at most 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_experiment(path)


def test_a_pipe_in_place_of_an_experiment_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(FileNotFoundError, match="is missing; give its path"):
        load_experiment(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "`steps` must be an integer, got 'many'"),
        ({"steps": True}, "`steps` must be an integer, got True"),
        ({"batch_size": None}, "`batch_size` must be an integer, got None"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        ({"model": 3}, "`model` must be text in quotes, got 3"),
        ({"arms": 3}, "`arms` must be a list of text in quotes or a mapping, got 3"),
        ({"arms": [["lora"]]}, "`arms` must be a list of text in quotes or a mapping"),
        ({"arms": [{"name": 3}]}, "`name` must be text in quotes, got 3"),
        ({"arms": [{"name": "lora", "lora": 3}]}, "`lora` must be a mapping, got 3"),
        ({"learning_rates": "1e-3"}, "`learning_rates` must be a list of a number, got '1e-3'"),
        ({"learning_rates": [None]}, "`learning_rates` must be a list of a number, got [None]"),
        ({"seeds": 3}, "`seeds` must be a list of an integer, got 3"),
        ({"seeds": ["a"]}, "`seeds` must be a list of an integer, got ['a']"),
        ({"lora": ["r"]}, "`lora` must be a mapping, got ['r']"),
        ({"metric": ["a"]}, "`metric` must be text in quotes or null, got ['a']"),
        ({"hrp": {"preheat_rank": "high"}}, "`preheat_rank` must be a number or a list of a"),
        ({"hrp": {"keep": 1}}, "`keep` must be true or false or a list of true or false or null"),
        ({"hrp": {"scale": {"a": 1}}}, "`scale` must be a number or a list of a number or null"),
        ({"tasks": [{"name": "gsm8k", "options": 3}]}, "`options` must be a mapping, got 3"),
        ({1: 2}, "unknown key(s) ['1'] in the experiment"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key_in_one_line(
    tmp_path, capsys, change, message
):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(BASE | {"arms": ["hrp-a"]} | change))
    for command in ("run", "list"):
        assert bench([command, str(path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"hrp-lab bench {command}: '{path}': ")
        assert message in told
        assert told.endswith("; mend it\n")
        assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
