import doctest
from xml.parsers import expat

import numpy as np
import pytest
import torch

import hrp.report.spectrum_views
from helpers.spectra_made import KINDS, made_spectrum
from hrp.report.figures import to_svg
from hrp.report.shares import energy, share_at
from hrp.report.spectrum_views import (
    alignment,
    alignment_map,
    common_rank,
    effective_rank_map,
    energy_curves,
    layer_and_kind,
    module_facts,
    spectrum_figures,
    spectrum_table,
)
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum


def with_values(values):
    rank = len(values)
    return ModuleSpectrum(torch.eye(6)[:, :rank], torch.tensor(values), torch.eye(6)[:rank], 1.0)


def test_the_doctests_hold():
    assert doctest.testmod(hrp.report.spectrum_views).failed == 0


def test_energy_is_the_cumulated_share_of_squares():
    assert energy(with_values([3.0, 4.0**0.5, 0.0])) == pytest.approx([9 / 13, 1, 1])
    assert share_at(energy(with_values([2.0, 1.0])), 1) == pytest.approx(0.8)
    assert share_at(energy(with_values([2.0, 1.0])), 32) == 1


def test_a_module_whose_update_is_zero_has_no_effective_rank_and_breaks_nothing():
    spectrum = Spectrum(
        {"layers.0.x": with_values([0.0, 0.0]), "layers.1.x": with_values([1.0, 1.0])}
    )
    facts = module_facts(spectrum)
    assert facts["layers.0.x"]["effective_rank"]["entropy"] is None
    assert facts["layers.1.x"]["effective_rank"]["entropy"] == pytest.approx(2.0)
    assert spectrum_table(spectrum).rows[0][3] == "—"
    effective_rank_map(spectrum)
    energy_curves(spectrum)


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.3.mlp.up_proj", "3", "model.layers.mlp.up_proj"),
        ("encoder.block.0.layer.0.SelfAttention.q", "0", "encoder.block.layer.SelfAttention.q"),
        ("transformer.h.11.attn.c_attn", "11", "transformer.h.attn.c_attn"),
        ("classifier", "—", "classifier"),
    ],
)
def test_a_module_s_name_tells_its_layer_and_kind(name, layer, kind):
    assert layer_and_kind(name) == (layer, kind)


def test_the_heat_map_has_a_row_a_layer_and_a_column_a_kind_with_the_spectrum_s_values():
    spectrum = made_spectrum(layers=12)
    axes = effective_rank_map(spectrum).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(i) for i in range(12)]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == sorted(KINDS)
    values = axes.collections[0].get_array().reshape(12, 3)
    ranks = spectrum.effective_rank("entropy")
    expected = [[ranks[f"model.layers.{i}.{kind}"] for kind in sorted(KINDS)] for i in range(12)]
    assert np.allclose(values, expected)


def test_modules_outside_the_layers_and_gaps_are_drawn_too():
    modules = dict(made_spectrum().items())
    del modules["model.layers.1.mlp.down_proj"]
    modules["lm_head"] = with_values([1.0, 0.5])
    axes = effective_rank_map(Spectrum(modules)).axes[0]
    assert axes.get_yticklabels()[-1].get_text() == "—"
    assert np.ma.is_masked(axes.collections[0].get_array())


def test_alignment_is_1_with_itself_and_about_rank_over_dimension_with_a_stranger():
    spectrum = made_spectrum(0)
    for side in ("U", "Vh"):
        assert list(alignment(spectrum, spectrum, 4, side).values()) == pytest.approx([1.0] * 9)
    strange = np.mean(list(alignment(spectrum, made_spectrum(1), 4, "Vh").values()))
    expected = np.mean([4 / d_in for _, d_in in KINDS.values()])
    assert strange == pytest.approx(expected, rel=0.3)


def test_spectra_of_two_ranks_are_aligned_at_the_rank_both_have():
    large, small = made_spectrum(rank=8), made_spectrum(rank=3)
    assert common_rank(large, small, 6) == 3
    for side in ("U", "Vh"):
        alignment_map(large, small, 3, side)


def test_the_table_has_a_row_a_module_as_the_spectrum_says():
    spectrum = made_spectrum(layers=1)
    rows = {row[0]: row for row in spectrum_table(spectrum).rows}
    assert set(rows) == set(spectrum)
    row = rows["model.layers.0.self_attn.q_proj"]
    module = spectrum["model.layers.0.self_attn.q_proj"]
    assert row[1:3] == ("24 x 16", "8")
    assert row[3] == f"{module.effective_rank():.1f}"
    assert row[6] == f"{share_at(energy(module), 4):.3f}"


@pytest.mark.parametrize("draw", [effective_rank_map, energy_curves])
def test_figures_can_be_drawn_for_many_layers(draw):
    expat.ParserCreate().Parse(to_svg(draw(made_spectrum(layers=40)), "x", ""), True)


def test_a_spectrum_without_reference_has_two_figures():
    figures = list(spectrum_figures(made_spectrum(), None, 8))
    assert [block.name for block in figures] == ["effective_rank", "energy"]


def test_the_alignment_with_a_reference_is_drawn_at_the_rank_that_both_have():
    figures = list(spectrum_figures(made_spectrum(rank=5), ("other", made_spectrum(rank=3)), 4))
    names = ["effective_rank", "energy", "alignment_outputs", "alignment_inputs"]
    assert [block.name for block in figures] == names
    assert "Alignment with other" in figures[2].caption
    assert all("at rank 3" in block.caption for block in figures[2:4])


@pytest.mark.parametrize("side", ["U", "Vh"])
def test_the_label_of_an_alignment_lies_within_the_figure_of_few_layers(side):
    figure = alignment_map(made_spectrum(), made_spectrum(1), 8, side)
    figure.draw_without_rendering()
    label = figure.axes[1].yaxis.label.get_window_extent()
    assert label.y0 >= 0
    assert label.y1 <= figure.bbox.y1
