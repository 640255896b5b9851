import dataclasses

import pytest

from helpers.synthetic import benchmark
from helpers.tables import column
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report.arm_table import cost_table


def test_the_cost_table_charges_the_start():
    table = cost_table(analyse(views(benchmark())[0]))
    assert column(table, "charged steps") == {"oracle-b": "0", "hrp-ab": "30", "lora": "0"}
    assert column(table, "fine-tuning steps")["hrp-ab"] == "420"
    assert column(table, "tokens")["hrp-ab"] == column(table, "tokens")["lora"] == "1.84 M"
    assert column(table, "peak memory")["lora"] == "3.00 GiB"


def by_another_engine(records, arm, **fields):
    return [
        dataclasses.replace(record, **fields) if record.arm == arm else record for record in records
    ]


@pytest.mark.parametrize(
    "fields",
    [{"device": "NVIDIA H100"}, {"command": "hrp-lab bench run a.yaml --cuda_graphs --workers 4"}],
)
def test_times_and_memory_of_another_engine_than_the_control_s_are_marked(fields):
    records = by_another_engine(benchmark(), "hrp-ab", **fields)
    table = cost_table(analyse(views(records)[0]))
    for name in ("wall time", "throughput", "peak memory"):
        cells = column(table, name)
        assert cells["hrp-ab"].endswith(" †")
        assert not cells["lora"].endswith("†")
        assert not cells["oracle-b"].endswith("†")
    assert "not comparable" in table.caption
    assert "†" not in cost_table(analyse(views(benchmark())[0])).caption


def test_where_the_control_mixes_engines_nothing_compares_with_it():
    records = [
        dataclasses.replace(record, device="NVIDIA H100") if record.run.seed == 0 else record
        for record in benchmark()
    ]
    cells = column(cost_table(analyse(views(records)[0])), "peak memory")
    assert all(cell.endswith(" †") for cell in cells.values())
