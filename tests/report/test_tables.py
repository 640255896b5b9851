import dataclasses
import doctest

import numpy as np
import pytest

import hrp.report.tables
from bench.synthetic import ARMS, benchmark, full_record, planted_scores, records_of
from hrp.bench.views import View, analyse, views
from hrp.report.tables import (
    Table,
    arms_table,
    cost_table,
    failures_table,
    provenance_table,
    sources_table,
)


def column(table, name):
    place = next(i for i, title in enumerate(table.header) if title.startswith(name))
    return {row[0]: row[place] for row in table.rows}


def test_the_doctests_hold():
    assert doctest.testmod(hrp.report.tables).failed == 0


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
    for one in analysis.comparisons:
        assert column(table, "minus lora")[one.arm].startswith(f"{one.difference:+.4f} [")
        assert float(column(table, "Holm p")[one.arm].lstrip("< ")) >= round(one.holm_p, 3) - 1e-9


def test_a_best_rate_on_the_edge_and_an_unswept_arm_are_marked():
    records = [
        full_record("lora", seed, rate, 450, 0, loss=1.4 + rate)
        for seed in range(2)
        for rate in (1e-3, 2e-3)
    ]
    records += [full_record("pissa", seed, 1e-3, 450, 0) for seed in range(2)]
    rates = column(arms_table(analyse(views(records)[0])), "best learning rate")
    assert rates == {"lora": "0.001 (edge)", "pissa": "0.001 (not swept)"}


def test_every_row_of_the_arms_table_can_be_traced_to_its_records():
    records = {record.run_id: record for record in benchmark()}
    analysis = analyse(views(records.values())[0])
    for arm, _, run_ids in sources_table(analysis).rows:
        losses = [records[run_id].metrics["eval_loss"] for run_id in run_ids.split()]
        assert len(losses) == 3
        assert float(np.mean(losses)) == pytest.approx(analysis.best[arm].mean)


def test_the_cost_table_charges_the_start():
    table = cost_table(analyse(views(benchmark())[0]))
    assert column(table, "charged steps") == {"oracle-b": "0", "hrp-ab": "30", "lora": "0"}
    assert column(table, "fine-tuning steps")["hrp-ab"] == "420"
    assert column(table, "tokens")["hrp-ab"] == column(table, "tokens")["lora"] == "1.84 M"
    assert column(table, "peak memory")["lora"] == "3.00 GiB"


def test_failures_are_listed_with_reasons_and_alike_ones_counted():
    failed = [
        dataclasses.replace(full_record(seed=seed), status="failed", reason="out of memory")
        for seed in range(3)
    ]
    table = failures_table([*failed, full_record()])
    assert table.rows == (("standin-a", "gsm8k", "hrp-ab", "failed", "3", "out of memory"),)
    assert failures_table([full_record()]) is None


def test_provenance_names_a_dirty_tree():
    dirty = dataclasses.replace(full_record(), git_dirty=True)
    facts = dict(provenance_table([dirty]).rows)
    assert facts["commit"].endswith("(with changes)")
    assert facts["device"] == "NVIDIA H200"
    assert facts["model"] == "base-lm-30m"


def test_no_name_breaks_a_markdown_table():
    table = Table("caption", ("a|b", "c"), (("x\ny", "<script>*`"), ("[l](u)", "\\|")))
    lines = table.markdown().splitlines()
    assert lines[0] == r"| a\|b | c |"
    assert lines[2] == r"| x y | \<script\>\*\` |"
    assert lines[3] == r"| \[l\](u) | \\\| |"
    assert len(lines) == 6
