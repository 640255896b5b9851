import dataclasses

import numpy as np
import pytest

from helpers.synthetic import full_record, planted_scores, records_of
from hrp_lab.bench.record import RecordError
from hrp_lab.bench.sweeps import Best, minimised, scores, select, widened


def test_each_arm_stands_at_the_rate_with_the_best_mean_over_seeds():
    table = {"lora": {1e-3: {0: 2.0, 1: 3.0}, 2e-3: {0: 1.0, 1: 3.9}, 4e-3: {0: 9.0, 1: 1.0}}}
    assert select(table, minimise=True)["lora"].learning_rate == 2e-3
    assert select(table, minimise=False)["lora"].learning_rate == 4e-3


def test_a_rate_at_which_a_seed_diverged_is_not_chosen():
    records = records_of(planted_scores(np.random.default_rng(0)))
    hot = [
        dataclasses.replace(record, status="failed", reason="NaN loss", metrics={})
        if record.run.learning_rate == 8e-3 and record.run.seed == 2
        else record
        for record in records
    ]
    lucky = [
        dataclasses.replace(record, metrics={"eval_loss": -99.0})
        if record.run.learning_rate == 8e-3 and record.status == "ok"
        else record
        for record in hot
    ]
    assert all(
        best.learning_rate != 8e-3 for best in select(scores(lucky, "eval_loss"), True).values()
    )


def test_arms_come_best_first():
    table = {"a": {1.0: {0: 2.0}}, "b": {1.0: {0: 1.0}}, "c": {1.0: {0: 3.0}}}
    assert list(select(table, minimise=True)) == ["b", "a", "c"]
    assert list(select(table, minimise=False)) == ["c", "a", "b"]


def test_a_best_rate_on_the_edge_is_told_apart_from_one_inside():
    sweep = {1e-3: {0: 1.0}, 2e-3: {0: 2.0}, 4e-3: {0: 3.0}}
    assert Best("a", 1e-3, sweep).on_edge
    assert Best("a", 4e-3, sweep).on_edge
    assert not Best("a", 2e-3, sweep).on_edge


@pytest.mark.parametrize(
    ("grid", "best", "wider"),
    [
        ([1e-3, 3e-3], 1e-3, (3.33e-4, 1e-3, 3e-3)),
        ([4e-3, 1e-3, 2e-3], 4e-3, (1e-3, 2e-3, 4e-3, 8e-3)),
        ([1e-3, 2e-3, 4e-3], 2e-3, (1e-3, 2e-3, 4e-3)),
        ([1e-3], 1e-3, (3.33e-4, 1e-3, 3e-3)),
    ],
)
def test_a_grid_grows_only_beyond_the_edge_on_which_the_best_sits(grid, best, wider):
    assert widened(grid, best) == pytest.approx(wider)


def test_widening_ends_once_the_best_is_inside():
    grid, optimum = (1e-4, 2e-4), 3e-3
    for _ in range(20):
        best = min(grid, key=lambda rate: abs(np.log(rate / optimum)))
        if (wider := widened(grid, best)) == grid:
            break
        grid = wider
    assert grid[0] < best < grid[-1]
    assert best == pytest.approx(optimum, rel=0.5)


def test_widening_refuses_a_best_that_was_not_tried():
    with pytest.raises(ValueError, match=r"`best` must be one of the grid's values \[0.001\]"):
        widened([1e-3], 2e-3)


def test_two_configurations_of_one_arm_are_not_mixed_in_silence():
    records = [full_record(preheat_rank=64), full_record(preheat_rank=128)]
    with pytest.raises(RecordError, match="two records of arm 'hrp-ab'"):
        scores(records, "eval_loss")
    apart = scores(
        records, "eval_loss", label=lambda record: f"R{record.run.config['preheat_rank']}"
    )
    assert sorted(apart) == ["R128", "R64"]


def test_failed_runs_and_absent_metrics_have_no_score():
    failed = dataclasses.replace(full_record(), status="failed", reason="out of memory")
    assert scores([failed], "eval_loss") == {}
    assert scores([full_record()], "rouge") == {}


def test_less_is_better_for_losses_and_lm_eval_s_perplexities_and_bits_only():
    lower = ("loss", "eval_loss", "perplexity", "word_perplexity", "byte_perplexity",
             "lm_eval_pile_bits_per_byte", "lm_eval_pile_word_perplexity_strict")  # fmt: skip
    assert all(map(minimised, lower))
    higher = ("exact_match", "accuracy", "matthews_correlation", "lm_eval_arc_easy_acc_norm")
    assert not any(map(minimised, higher))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_screening_seed_is_compared_with_the_same_seed_at_the_chosen_rate(sign):
    # Seed 0 is a hard one: its value at the better rate is above the mean at the chosen rate.
    hard = {4e-3: {0: 9.0, 1: 4.0, 2: 4.1}, 1e-3: {0: 7.0}}
    easy = {4e-3: {0: 3.0, 1: 6.0, 2: 6.1}, 1e-3: {0: 4.0}}
    turned = [
        {
            "a": {
                rate: {seed: sign * v for seed, v in values.items()}
                for rate, values in by_rate.items()
            }
        }
        for by_rate in (hard, easy)
    ]
    sweeps = [select(by_rate, minimise=sign == 1)["a"] for by_rate in turned]
    assert [sweep.learning_rate for sweep in sweeps] == [4e-3, 4e-3]
    assert [sweep.overtaken_by for sweep in sweeps] == [1e-3, None]


def test_a_rate_behind_a_complete_one_on_its_seeds_is_not_waited_for():
    # 2e-3 is best on the screening seed, 4e-3 on all: as a finished plan leaves it.
    by_rate = {2e-3: {0: 1.0, 1: 9.0}, 4e-3: {0: 3.0, 1: 3.0}, 1e-3: {0: 2.0}}
    best = select({"a": by_rate}, minimise=True)["a"]
    assert (best.learning_rate, best.overtaken_by) == (4e-3, None)


def test_a_rate_at_which_a_seed_failed_is_not_waited_for():
    by_rate = {2e-3: {0: 3.0, 1: 3.0}, 4e-3: {0: 1.0}}
    assert select({"a": by_rate}, True)["a"].overtaken_by == 4e-3
    failed = {"a": frozenset({4e-3})}
    assert select({"a": by_rate}, True, failed)["a"].overtaken_by is None


def test_a_rate_that_failed_bounds_the_sweep():
    table = {"lora": {1e-3: {0: 2.0}, 2e-3: {0: 1.0}}}
    assert select(table, minimise=True)["lora"].on_edge
    bounded = select(table, minimise=True, failed={"lora": frozenset({4e-3})})["lora"]
    assert not bounded.on_edge
    assert bounded.grid == (1e-3, 2e-3, 4e-3)
