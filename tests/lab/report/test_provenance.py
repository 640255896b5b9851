import dataclasses

import numpy as np
import pytest

from helpers.synthetic import benchmark, full_record
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report.provenance import (
    failures_table,
    origins_table,
    provenance_table,
    sources_table,
)


def test_the_origins_of_a_view_s_records_are_counted():
    graphs = "hrp-lab bench run a.yaml --padding_free --cuda_graphs --workers 4"
    records = [
        dataclasses.replace(record, command=graphs, git_dirty=None)
        if record.arm == "hrp-ab"
        else record
        for record in benchmark()
    ]
    table = origins_table(views(records)[0].records)
    commit, device = "0123456789abcdef0123456789abcdef01234567", "NVIDIA H200"
    assert set(table.rows) == {
        ("18", commit, device, "none"),
        ("9", f"{commit} (changes unknown)", device, "--padding_free --cuda_graphs"),
    }
    assert "Losses of different engines agree up to rounding" in table.caption
    assert "All were run by one engine" in origins_table(benchmark()).caption


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
    unknown = dataclasses.replace(full_record(), git_dirty=None)
    assert dict(provenance_table([unknown]).rows)["commit"].endswith("(changes unknown)")
    assert facts["device"] == "NVIDIA H200"
    assert facts["model"] == "base-lm-30m"


def test_every_row_of_the_arms_table_can_be_traced_to_its_records():
    records = {record.run_id: record for record in benchmark()}
    analysis = analyse(views(records.values())[0])
    for arm, _, run_ids in sources_table(analysis).rows:
        losses = [records[run_id].metrics["eval_loss"] for run_id in run_ids.split()]
        assert len(losses) == 3
        assert float(np.mean(losses)) == pytest.approx(analysis.best[arm].mean)
