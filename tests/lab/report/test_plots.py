import dataclasses
from xml.parsers import expat

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from helpers.synthetic import benchmark, full_record
from hrp.report.figures import INK, plain, to_svg
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report import plots


@pytest.fixture(scope="module")
def analysis():
    return analyse(views(benchmark())[0])


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


@pytest.mark.parametrize(
    "name", ["$x", "$\\frac$ $", "a\nb", "名前 🙂", "_" * 300, "<script>&amp;"]
)
def test_any_name_can_be_drawn_as_it_is(name):
    records = [
        full_record(arm, seed, rate, 450, 0)
        for arm in ("lora", name)
        for seed in (0, 1)
        for rate in (1e-3, 2e-3)
    ]
    analysis = analyse(views(records)[0])
    for draw in (plots.differences, plots.sweep_curves, plots.loss_curves):
        expat.ParserCreate().Parse(to_svg(draw(analysis), "x", name), True)
    assert len(plain(name)) <= 80


def test_sweeps_show_the_means_over_seeds(analysis):
    lines = lines_of(plots.sweep_curves(analysis))
    assert set(lines) == {"lora", "hrp-ab", "oracle-b"}
    assert lines["lora"].get_ydata() == pytest.approx([1.461, 1.451, 1.471])
    assert to_hex(lines["lora"].get_color()) == INK


def test_an_unswept_benchmark_has_no_sweep_figure():
    (view,) = views([full_record("lora", seed, steps=450, charged=0) for seed in range(2)])
    assert plots.sweep_curves(analyse(view)) is None


def test_loss_curves_start_after_the_charged_steps_and_end_together(analysis):
    lines = lines_of(plots.loss_curves(analysis))
    assert lines["hrp-ab"].get_xdata()[0] - lines["lora"].get_xdata()[0] == pytest.approx(30)
    ends = {label: line.get_xdata()[-1] for label, line in lines.items()}
    assert max(ends.values()) - min(ends.values()) <= 10


def test_loss_curves_average_over_seeds():
    records = [full_record("lora", seed, steps=450, charged=0) for seed in range(3)]
    curve = lines_of(plots.loss_curves(analyse(views(records)[0])))["lora"]
    expected = np.mean([[loss for _, loss in record.losses] for record in records], axis=0)
    assert curve.get_ydata() == pytest.approx(expected)


def test_long_curves_are_averaged_not_dropped():
    record = full_record("lora", steps=5000, charged=0)
    curve = lines_of(plots.loss_curves(analyse(views([record])[0])))["lora"]
    assert len(curve.get_ydata()) <= 120
    assert curve.get_ydata().mean() == pytest.approx(
        np.mean([y for _, y in record.losses]), rel=1e-2
    )


def test_an_arm_far_from_all_others_does_not_flatten_them():
    records = [
        full_record(arm, seed, 1e-3, 450, 0, loss + 0.001 * ((seed * index) % 3))
        for index, (arm, loss) in enumerate(
            {"lora": 1.45, "a": 1.44, "b": 1.452, "c": 1.455, "full": -9.0}.items()
        )
        for seed in range(3)
    ]
    figure = plots.differences(analyse(views(records)[0]))
    assert figure.axes[0].get_xlim()[1] < 0.2
    assert any(text.get_text().startswith("-10.4") for text in figure.axes[0].texts)


def test_a_rate_with_fewer_seeds_is_hollow_and_has_no_band():
    records = [full_record("lora", seed, rate, 450, 0, 1.4 + rate + 0.01 * seed)
               for seed in range(3) for rate in (1e-3, 2e-3)]  # fmt: skip
    records.append(full_record("lora", 0, 4e-3, 450, 0, 1.41))
    axes = plots.sweep_curves(analyse(views(records)[0])).axes[0]
    band, *points = axes.collections
    faces = {
        float(p.get_offsets()[0, 0]): next(map(to_hex, p.get_facecolor()), None) for p in points
    }
    assert faces == {1e-3: INK, 2e-3: INK, 4e-3: None}
    assert band.get_paths()[0].vertices[:, 0].max() == pytest.approx(2e-3)


def test_an_arm_that_diverged_is_clipped_and_marked_and_leaves_the_rest_readable():
    losses = {"lora": 1.45, "a": 1.44, "b": 1.452, "c": 1.455, "lora+": 4.37}
    records = [
        full_record(arm, seed, rate, 450, 0, loss + 20 * abs(rate - 2e-3) + 0.001 * seed)
        for arm, loss in losses.items()
        for seed in range(3)
        for rate in (1e-3, 2e-3, 4e-3)
    ]
    axes = plots.sweep_curves(analyse(views(records)[0])).axes[0]
    low, high = axes.get_ylim()
    assert low < 1.44
    assert high < 2
    points = [mark for mark in axes.collections if isinstance(mark, PathCollection)]
    heights = [float(point.get_offsets()[0, 1]) for point in points]
    assert len(heights) == 15
    assert all(low < height < high for height in heights)
    assert sum(height > high - 0.05 * (high - low) for height in heights) >= 3
    assert [text.get_text() for text in axes.texts] == ["4.3710"]


def test_no_arm_of_the_differences_lies_on_the_frame(analysis):
    axes = plots.differences(analysis).axes[0]
    bottom, top = axes.get_ylim()
    assert top < min(axes.get_yticks())
    assert bottom > max(axes.get_yticks())


@pytest.mark.parametrize("name", ["hrp-ab", "hrp-ab R=128 K=100", "hrp-ab learning_rate=0.000125"])
def test_the_legend_of_many_arms_lies_within_the_figure(name):
    arms = ["lora", *(f"{name} {number}"[-max(len(name), 8) :] for number in range(7))]
    records = [
        full_record(arm, seed, rate, 450, 0)
        for arm in arms
        for seed in (0, 1)
        for rate in (1e-3, 2e-3)
    ]
    analysis = analyse(views(records)[0])
    for draw in (plots.sweep_curves, plots.loss_curves):
        figure = draw(analysis)
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.x1


def test_the_label_of_a_long_metric_lies_within_the_figure():
    records = [
        full_record(f"hrp-ab learning_rate={rate}" if rate else "lora", seed, 1e-3, 450, 0)
        for rate in (0, 0.000125, 0.00025)
        for seed in (0, 1)
    ]
    analysis = dataclasses.replace(analyse(views(records)[0]), metric="matthews_correlation")
    figure = plots.differences(analysis)
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert label.x0 >= 0
    assert label.x1 <= figure.bbox.x1
