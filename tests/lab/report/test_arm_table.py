import dataclasses
import doctest

import numpy as np

import hrp_lab.report.arm_table
from helpers.synthetic import ARMS, benchmark, full_record, planted_scores, records_of
from helpers.tables import column
from hrp.report.table import DASH
from hrp_lab.bench.comparisons import View, analyse, views
from hrp_lab.report.arm_table import LOST, arms_table


def test_the_doctests_hold():
    assert doctest.testmod(hrp_lab.report.arm_table).failed == 0


def test_the_arms_table_says_what_the_records_say():
    table = arms_table(analyse(views(benchmark())[0]))
    assert [row[0] for row in table.rows] == ["oracle-b", "hrp-ab", "lora"]
    means = column(table, "eval_loss")
    assert means["hrp-ab"] == f"{1.42 + 0.001:.4f} ± {0.001:.4f}"
    assert column(table, "best learning rate") == dict.fromkeys(means, "0.002")
    assert column(table, "verdict")["lora"] == "control"
    assert column(table, "exact_match")["lora"] == "0.0500 ± 0.0000"
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_table_s_verdicts_and_p_values_are_the_comparisons():
    values = planted_scores(np.random.default_rng(0), effects={"hrp-ab": -8.0, "pissa": 8.0})
    view = View("synthetic", "gsm8k", "equal total steps", 100, tuple(records_of(values)))
    analysis = analyse(view)
    table = arms_table(analysis)
    verdicts = column(table, "verdict")
    assert verdicts["hrp-ab"] == "better"
    assert verdicts["pissa"] == "worse"
    assert set(column(table, "arm")) == set(ARMS)
    for comparison in analysis.comparisons:
        assert column(table, "minus lora")[comparison.arm].startswith(
            f"{comparison.difference:+.4f} ["
        )
        assert (
            float(column(table, "Holm p")[comparison.arm].lstrip("≤ "))
            >= round(comparison.holm_p, 3) - 1e-9
        )


def test_a_best_rate_on_the_edge_and_an_unswept_arm_are_marked():
    records = [
        full_record("lora", seed, rate, 450, 0, loss=1.4 + rate)
        for seed in range(2)
        for rate in (1e-3, 2e-3)
    ]
    records += [full_record("pissa", seed, 1e-3, 450, 0) for seed in range(2)]
    rates = column(arms_table(analyse(views(records)[0])), "best learning rate")
    assert rates == {"lora": "0.001 (edge)", "pissa": "0.001 (not swept)"}


def unsettled(arm="pissa"):
    """The benchmark, and an arm with all seeds at a rate that is far from its best."""
    wrong = [full_record(arm, seed, 4e-3, 450, 0, 4.4 + 0.1 * seed) for seed in range(3)]
    return [*benchmark(), *wrong, full_record(arm, 0, 1e-3, 450, 0, 1.43)]


def test_an_arm_whose_rate_is_not_settled_has_no_difference_and_says_what_is_missing():
    table = arms_table(analyse(views(unsettled())[0]))
    assert column(table, "verdict")["pissa"] == "rate not settled"
    assert column(table, "minus lora")["pissa"] == column(table, "Holm p")["pissa"] == DASH
    assert column(table, "best learning rate")["pissa"] == (
        "0.004 (not settled: 0.001 is better on 1 seed)"
    )
    assert "Holm over all 2," in table.caption


def test_compute_is_the_control_s_flops_over_all_seeds():
    table = arms_table(analyse(views(benchmark())[0]))
    assert column(table, "compute") == {"lora": "1.00", "hrp-ab": "1.00", "oracle-b": "1.00"}
    dearer = [
        dataclasses.replace(
            record,
            costs=dataclasses.replace(record.costs, flops=(1.0 + 0.1 * record.run.seed) * 2e14),
        )
        if record.arm == "hrp-ab"
        else dataclasses.replace(record, costs=dataclasses.replace(record.costs, flops=1e14))
        for record in benchmark()
    ]
    table = arms_table(analyse(views(dearer)[0]))
    assert column(table, "compute") == {"lora": "1.00", "hrp-ab": "2.20", "oracle-b": "1.00"}
    assert "an equal number of steps is not equal compute" in table.caption


def test_a_share_of_the_gap_has_its_interval_and_is_blank_where_it_says_nothing():
    far = [
        full_record(arm, seed, 2e-3, 450, 0, loss + 0.001 * ((seed + index) % 3))
        for index, (arm, loss) in enumerate({"pissa": 1.6, "full": 1.2, "eva": 1.46}.items())
        for seed in range(3)
    ]
    noisy = [
        dataclasses.replace(
            record,
            metrics={"eval_loss": record.metrics["eval_loss"] + 0.001 * (hash_of(record) % 3)},
        )
        for record in [*benchmark(), *far]
    ]
    analysis = analyse(views(noisy)[0])
    table = arms_table(analysis)
    cells = column(table, "gap to oracle-b closed [95 % CI]")
    assert cells["pissa"] == cells["full"] == cells["lora"] == cells["oracle-b"] == DASH
    share = analysis.gaps["hrp-ab"]
    assert cells["hrp-ab"] == f"{share.share:.0%} [{share.low:.0%}, {share.high:.0%}]"
    assert "Fieller" in table.caption


def hash_of(record):
    return sum(map(ord, record.arm)) * (record.run.seed + 1)


def test_the_caption_says_what_the_interval_and_the_correction_are():
    values = planted_scores(np.random.default_rng(0), effects={"hrp-ab": 0.0})
    view = View("synthetic", "gsm8k", "equal total steps", 100, tuple(records_of(values)))
    analysis = analyse(view)
    caption = arms_table(analysis).caption
    sd = analysis.pool.variance**0.5
    assert f"(sd of a run {sd:.4f}, 10 degrees of freedom)" in caption
    assert "Each interval is for its comparison alone; p is corrected by Holm over all 5" in caption


def test_a_row_whose_interval_leaves_0_out_without_a_verdict_is_marked():
    names = ("lora", *(f"arm-{index}" for index in range(9)))
    generator = np.random.default_rng(4)
    values = planted_scores(generator, names, effects={"arm-0": -2.3}, curvature=9.0)
    view = View("synthetic", "gsm8k", "equal total steps", 100, tuple(records_of(values, names)))
    analysis = analyse(view)
    table = arms_table(analysis)
    marked = {arm for arm, cell in column(table, "verdict").items() if cell == LOST}
    assert marked == {
        comparison.arm
        for comparison in analysis.comparisons
        if comparison.verdict == "no significant difference"
        and not comparison.interval[0] <= 0 <= comparison.interval[1]
    }
    assert "arm-0" in marked
    assert LOST not in column(arms_table(analyse(views(benchmark())[0])), "verdict").values()
