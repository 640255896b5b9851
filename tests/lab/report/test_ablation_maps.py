import numpy as np
import pytest
from scipy import stats

from helpers.synthetic import full_record
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report.ablation_maps import grids, heat_maps, levels_table


def ablated(ranks, steps, arm="hrp-b", offset=0.0, noise=0.0):
    generator = np.random.default_rng(0)
    return [
        full_record(
            arm, seed, rate, 450 - K, K,
            1.4 + offset + R / 1000 + K / 100 + rate + 0.1 * seed
            + noise * float(generator.standard_normal()),
            preheat_rank=R, preheat_steps=K,
        )
        for R in ranks for K in steps for seed in (0, 1, 2) for rate in (1e-3, 2e-3)
    ]  # fmt: skip


def controls(loss=1.6):
    return [full_record("lora", seed, rate, 450, 0, loss + 0.1 * seed + rate)
            for seed in (0, 1, 2) for rate in (1e-3, 2e-3)]  # fmt: skip


def judged(*records):
    return analyse(views([record for group in records for record in group])[0])


def test_a_map_s_cells_are_means_at_the_best_rate_in_numeric_order_with_their_spread():
    (figure,) = heat_maps(judged(ablated((4, 128, 16), (5, 100, 25)), controls())).values()
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["4", "16", "128"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "25", "100"]
    values = axes.collections[0].get_array().reshape(3, 3)
    expected = [[1.501 + R / 1000 + K / 100 for K in (5, 25, 100)] for R in (4, 16, 128)]
    assert np.allclose(values, expected)
    assert axes.texts[0].get_text() == "1.5550\n±0.1000"


def test_all_maps_of_a_view_have_one_scale_about_the_control():
    arms = [ablated((4, 16), (5, 25), arm, offset) for arm, offset in (("a", 0.0), ("b", -3.0))]
    maps = heat_maps(judged(*arms, controls()))
    assert set(maps) == {"a", "b"}
    scales = {figure.axes[0].collections[0].get_clim() for figure in maps.values()}
    ((low, high),) = scales
    assert (low + high) / 2 == pytest.approx(1.701)
    assert low == pytest.approx(1.501 - 3 + 0.004 + 0.05)
    assert all("lora 1.7010" in figure.axes[0].get_title() for figure in maps.values())
    for figure in maps.values():
        assert figure.axes[0].collections[0].cmap.name == "RdBu_r"


def test_without_the_control_the_centre_is_the_median_and_says_so():
    alike = [
        full_record("hrp-b", seed, 1e-3, 420, 30, 1.4 + R / 10, preheat_rank=R, preheat_steps=K)
        for R in (1, 2) for K in (5, 25) for seed in (0, 1)
    ]  # fmt: skip
    (figure,) = heat_maps(judged(alike)).values()
    assert "median 1.5500" in figure.axes[0].get_title()


def test_there_is_no_grid_where_only_one_setting_varies_or_a_third_one_does():
    assert grids(judged(ablated((4, 16), (5,)), controls())) == []
    third = [
        full_record("hrp-b", seed, 1e-3, 420, 30, preheat_rank=R, preheat_steps=K, scale=scale)
        for R in (4, 8) for K in (10, 20) for scale in (1.0, 2.0) for seed in (0, 1)
    ]  # fmt: skip
    assert grids(judged(third, controls())) == []
    assert heat_maps(judged(controls())) == {}


def test_a_level_is_the_mean_over_the_other_factor_minus_the_control_paired_by_seed():
    analysis = judged(ablated((4, 16), (5, 25, 100), noise=0.02), controls())
    (row,) = [row for row in levels_table(analysis).rows if row[1:3] == ("preheat_rank", "16")]
    values = {arm: np.array([b.values[s] for s in range(3)]) for arm, b in analysis.best.items()}
    cells = [values[f"hrp-b R=16 K={K}"] for K in (5, 25, 100)]
    by_seed = np.mean(cells, axis=0) - values["lora"]
    pool = analysis.pool
    variance = max((1 + 1 / 3) * pool.variance, by_seed.var(ddof=1))
    half = stats.t.isf(0.025, pool.degrees) * (variance / 3) ** 0.5
    mean = by_seed.mean()
    assert row[3:] == ("3", f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]")


def test_a_level_that_lacks_a_cell_has_no_row():
    whole = ablated((4, 16), (5, 25), noise=0.02)
    lacking = [
        record for record in whole
        if (record.run.config["preheat_rank"], record.run.config["preheat_steps"]) != (16, 25)
    ]  # fmt: skip
    table = levels_table(judged(lacking, controls()))
    assert [row[1:3] for row in table.rows] == [("preheat_rank", "4"), ("preheat_steps", "5")]
    assert levels_table(judged(whole)) is None
