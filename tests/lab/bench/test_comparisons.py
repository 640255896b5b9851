import dataclasses

import pytest

from helpers.synthetic import JUDGED, benchmark, full_record
from hrp_lab.bench.comparisons import analyse, arm_labels, main_metric, setting, views
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.record import RecordError

NOW = {"truncation": "loss"}  # a section without it is superseded, and says so in its name


def test_both_bases_hold_every_arm_at_the_same_number_of_steps():
    total, tuned = views(benchmark())
    assert (total.basis, tuned.basis) == ("equal total steps", "equal fine-tuning steps")
    assert {record.costs.total_steps for record in total.records} == {450}
    assert {record.costs.finetune_steps for record in tuned.records} == {450}
    assert (
        {record.arm for record in total.records}
        == {record.arm for record in tuned.records}
        == set(JUDGED)
    )


def test_budgets_experiments_and_tasks_are_kept_apart():
    records = benchmark((450, 930))
    other = [
        dataclasses.replace(record, run=dataclasses.replace(record.run, task="glue"))
        for record in records
    ]
    described = [(view.task, view.steps, view.basis[:11]) for view in views([*records, *other])]
    bases = ("equal total", "equal fine-")
    assert described == [(t, s, b) for t in ("glue", "gsm8k") for s in (450, 930) for b in bases]


def test_the_second_basis_is_left_out_where_nothing_is_charged():
    plain = [record for record in benchmark() if record.arm != "hrp-ab"]
    assert [view.basis for view in views(plain)] == ["equal total steps"]


def test_a_control_that_is_charged_for_its_start_is_compared_at_its_total():
    records = [record for record in benchmark() if record.costs.total_steps == 450]
    by_basis = {view.basis: view for view in views(records, control="hrp-ab")}
    total = by_basis["equal total steps"]
    assert total.steps == 450
    assert {record.arm for record in total.records} == set(JUDGED)


def test_a_fraction_of_a_step_charged_counts_as_a_step():
    record = full_record("eva", steps=448)
    charged = dataclasses.replace(
        record, costs=dataclasses.replace(record.costs, finetune_steps=448, charged_steps=1.2)
    )
    (view,) = views([charged, full_record("lora", steps=450, charged=0)])
    assert {record.arm for record in view.records} == {"eva", "lora"}


def test_failures_are_in_no_view():
    failed = dataclasses.replace(full_record("lora"), status="failed", reason="out of memory")
    assert views([failed]) == []


def test_configurations_of_one_arm_are_told_apart_by_what_differs_first_rank_then_steps():
    records = [
        full_record("hrp-b", seed, hrp=NOW | {"preheat_rank": R, "preheat_steps": K, "batches": K})
        for R in (4, 16)
        for K in (5, 10)
        for seed in (0, 1)
    ]
    labels = arm_labels([*records, full_record("lora")])
    assert set(labels.values()) == {
        "lora", "hrp-b R=4 K=5", "hrp-b R=4 K=10", "hrp-b R=16 K=5", "hrp-b R=16 K=10",
    }  # fmt: skip


def test_an_arm_with_one_configuration_keeps_its_name():
    records = [
        full_record("lora", seed, rate, training={"weight_decay": 0.1})
        for seed in (0, 1)
        for rate in (1e-3, 2e-3)
    ]
    assert set(arm_labels(records).values()) == {"lora"}


def test_configurations_that_share_no_rate_and_seed_are_not_merged():
    ranks = [
        full_record("hrp-ab", seed, rate, hrp=NOW | {"preheat_rank": R})
        for R, rate in ((64, 1e-3), (128, 2e-3))
        for seed in range(3)
    ]
    seeds = [full_record("hrp-b", seed, hrp=NOW | {"scale": float(seed > 0)}) for seed in range(3)]
    labels = sorted(set(arm_labels([*ranks, *seeds]).values()))
    assert labels == ["hrp-ab R=128", "hrp-ab R=64", "hrp-b scale=0.0", "hrp-b scale=1.0"]


@pytest.mark.parametrize(
    ("name", "setting", "other"),
    [
        ("model", "a", "b"),
        ("batch_size", 8, 32),
        ("dtype", "float32", "bfloat16"),
        ("lora", {"r": 4}, {"r": 64}),
        ("task", {"test_rows": 10}, {"test_rows": 500}),
    ],
)
def test_what_differs_in_more_than_the_start_is_never_compared(name, setting, other):
    records = [full_record("lora", seed, 1e-3, 450, 0, **{name: setting}) for seed in range(3)]
    records += [full_record("hrp-b", seed, 1e-3, 420, 30, **{name: setting}) for seed in range(3)]
    records += [full_record("hrp-ab", seed, 1e-3, 420, 30, **{name: other}) for seed in range(3)]
    total = [view for view in views(records) if view.basis == "equal total steps"]
    assert [{record.arm for record in view.records} for view in total] in (
        [{"lora", "hrp-b"}, {"hrp-ab"}], [{"hrp-ab"}, {"lora", "hrp-b"}],
    )  # fmt: skip
    assert all("=" in view.settings and view.settings in view.title for view in total)
    judged = [comparison for view in total for comparison in analyse(view).comparisons]
    assert [(comparison.arm, comparison.control) for comparison in judged] == [("hrp-b", "lora")]


def test_views_that_share_all_settings_need_no_further_name():
    assert {view.settings for view in views(benchmark())} == {""}
    assert views(benchmark())[0].title == "GSM8K, 450 steps in all (standin-a)"


def test_a_failed_rate_counts_for_its_own_configuration_alone():
    records = [
        full_record("hrp-b", 0, rate, 420, 30, 1.4 - rate, hrp=NOW | {"preheat_rank": R})
        for R in (4, 8)
        for rate in (1e-3, 2e-3)
    ]
    hot = full_record("hrp-b", 0, 4e-3, 420, 30, hrp=NOW | {"preheat_rank": 4})
    failed = dataclasses.replace(hot, status="failed", reason="NaN", metrics={}, costs=Costs())
    best = analyse(views([*records, failed])[0]).best
    assert {arm: sweep.on_edge for arm, sweep in best.items()} == {
        "hrp-b R=4": False, "hrp-b R=8": True,
    }  # fmt: skip


def test_the_analysis_finds_the_best_rate_the_verdict_and_the_share_of_the_gap():
    analysis = analyse(views(benchmark())[0])
    assert analysis.metric == "eval_loss"
    assert {best.learning_rate for best in analysis.best.values()} == {2e-3}
    assert list(analysis.best) == ["oracle-b", "hrp-ab", "lora"]
    assert [record.run.seed for record in analysis.records_of("hrp-ab")] == [0, 1, 2]
    assert analysis.oracle == "oracle-b"


def test_without_the_control_there_is_a_table_but_no_comparison():
    records = [record for record in benchmark() if record.arm == "hrp-ab"]
    all_views = views(records)
    assert [view.steps for view in all_views] == [450, 480]
    assert analyse(all_views[0]).comparisons == []


def test_a_task_s_own_metric_goes_before_the_loss():
    records = [full_record("lora"), full_record("lora", seed=1)]
    assert main_metric(records) == "eval_loss"
    assert main_metric([full_record("lora", metric="exact_match")]) == "exact_match"
    only = dataclasses.replace(full_record("lora"), metrics={"rouge": 0.1, "bleu": 0.2})
    assert main_metric([only]) == "bleu"
    with pytest.raises(ValueError, match="`records` must have metrics"):
        main_metric([])


def test_records_of_one_run_under_two_versions_of_the_code_are_an_error():
    record = full_record("lora", steps=450, charged=0)
    with pytest.raises(RecordError, match="two records of arm 'lora'"):
        analyse(views([record, dataclasses.replace(record, costs=Costs(finetune_steps=450))])[0])


def test_a_setting_is_found_wherever_it_is_nested():
    record = full_record("hrp-b", hrp={"inner": {"preheat_rank": 64}})
    assert setting(record, "preheat_rank") == "64"
    assert setting(record, "nowhere") is None


def test_a_rate_at_which_all_runs_failed_is_part_of_the_sweep():
    records = [full_record("lora", 0, rate, 450, 0, 1.4 - rate) for rate in (1e-3, 2e-3)]
    hot = full_record("lora", 0, 4e-3, 450, 0)
    failed = dataclasses.replace(hot, status="failed", reason="NaN", metrics={}, costs=Costs())
    assert analyse(views(records)[0]).best["lora"].on_edge
    assert not analyse(views([*records, failed])[0]).best["lora"].on_edge
