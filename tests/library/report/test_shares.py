"""What ranks keep of an update, against dense computations, and what is recommended of it."""

import math

import pytest
import torch

from helpers.spectra_made import made_spectrum
from hrp.report.shares import MARGIN, energy, loss_share, recommend, share_at
from hrp.spectra.factorization import factored_svd
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp.spectra.truncation import DAMPING


def made_module(values, left=None, right=None):
    rank = len(values)
    return ModuleSpectrum(torch.eye(rank), torch.tensor(values), torch.eye(rank), 1.0, left, right)


def moments(rank, seed):
    X = torch.randn(4 * rank, rank, generator=torch.Generator().manual_seed(seed))
    return X.T @ X / len(X)


def test_the_share_is_one_less_the_loss_of_the_best_cut_in_the_metric():
    A, B = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    left, right = moments(6, 1), moments(6, 2)
    module = ModuleSpectrum(*factored_svd(A, B), 1.0, left, right)

    def damped(metric):
        metric = metric.double() / float((metric.diagonal() * module.S / module.S.sum()).sum())
        return metric + DAMPING * torch.eye(6)

    def norm(core):
        return float(torch.trace(core.T @ damped(left) @ core @ damped(right)))

    full = torch.diag(module.S.double())
    for rank in (1, 2, 5):
        cut = module.truncated(rank, "loss")
        core = (module.U.T @ cut.U @ cut.S.diag() @ cut.Vh @ module.Vh.T).double()
        expected = 1 - norm(full - core) / norm(full)
        assert share_at(loss_share(module), rank) == pytest.approx(expected, abs=1e-5)
    assert share_at(loss_share(module), 32) == pytest.approx(1.0)


def test_in_a_metric_that_is_the_identity_the_shares_are_those_of_the_energy():
    module = made_module([3.0, 2.0, 1.0], torch.eye(3), torch.eye(3))
    assert loss_share(module) == pytest.approx(energy(module))


def test_without_a_metric_there_is_no_share_and_no_effective_rank_in_it():
    plain = made_module([3.0, 2.0, 1.0])
    spectrum = Spectrum({"plain": plain, "whole": made_module([1.0] * 3, *[torch.eye(3)] * 2)})
    assert math.isnan(share_at(loss_share(plain), 2))
    ranks = spectrum.effective_rank("loss")
    assert math.isnan(ranks["plain"])
    assert ranks["whole"] == pytest.approx(3.0)


def test_the_smallest_rank_at_which_the_median_module_keeps_the_share_is_recommended():
    flat, steep = [1.0] * 128, [1.0] * 8 + [1e-3] * 120
    few = {"a": made_module(steep), "b": made_module(steep), "c": made_module(flat)}
    advice = recommend(Spectrum(few))
    assert (advice.rank, advice.reached, advice.preheat_rank) == (8, True, MARGIN * 8)
    assert "preheat rank 32 (the present 128 is enough)" in advice.sentence


def test_a_spectrum_whose_tail_holds_much_is_to_be_preheated_at_twice_its_rank():
    advice = recommend(Spectrum({"a": made_module([1.0] * 128)}))
    assert (advice.rank, advice.reached, advice.preheat_rank) == (64, False, 256)
    assert "the last half of its directions holds 50 %" in advice.sentence
    assert "recommended rank 64 or more (the median module keeps only 50 %" in advice.sentence


def test_a_spectrum_of_too_few_directions_for_its_rank_is_to_be_preheated_anew():
    advice = recommend(Spectrum({"a": made_module([1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])}))
    assert (advice.rank, advice.preheat_rank, advice.present) == (4, 16, 8)
    assert "the present 8 is less than 4 times it" in advice.sentence


def test_the_metric_is_used_where_a_module_has_it_and_the_energy_where_none_has():
    left = torch.diag(torch.tensor([1e4] * 4 + [1e-4] * 28))
    weighted = made_module([1.0] * 32, left, torch.eye(32))
    mixed = recommend(Spectrum({"a": weighted, "b": made_module([1.0] * 32)}))
    assert mixed.in_loss
    assert mixed.rank == 4
    assert not recommend(made_spectrum()).in_loss


def test_nothing_is_recommended_of_updates_that_stayed_zero():
    assert recommend(Spectrum({"a": made_module([0.0, 0.0])})) is None
