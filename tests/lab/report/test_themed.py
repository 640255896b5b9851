"""Figures on a light and on a dark page: no background, nothing left in ink."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from helpers.synthetic import benchmark
from hrp.report.figures import INK
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report import plots
from hrp_lab.report.markdown import MID_TONE, save_themed

LIGHT, DARK = "#ffffff", "#1e2129"  # the site's two backgrounds


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(colour, background) -> float:
    high, low = sorted((luminance(colour), luminance(background)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def figures():
    analysis = analyse(views(benchmark())[0])
    return [plots.differences(analysis), plots.sweep_curves(analysis), plots.loss_curves(analysis)]


def test_the_tone_of_text_can_be_read_on_both_backgrounds():
    assert min(contrast(MID_TONE, LIGHT), contrast(MID_TONE, DARK)) > 3.9
    assert contrast(INK, DARK) < 1.5  # which is why ink will not do


def test_a_saved_figure_has_no_background_and_no_ink(tmp_path):
    for index, figure in enumerate(figures()):
        assert isinstance(figure, Figure)
        pixels = imread(save_themed(figure, tmp_path / f"{index}.png"))
        assert pixels.shape[2] == 4
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3]
        assert corners.max() == 0
        solid = pixels[pixels[:, :, 3] > 0.9][:, :3]
        assert len(solid)
        darkest = min(luminance(pixel) for pixel in np.unique(solid, axis=0))
        assert darkest > luminance(INK) + 0.05
        nearly_white = (solid.min(axis=1) > 0.97).mean()
        assert nearly_white < 0.01
