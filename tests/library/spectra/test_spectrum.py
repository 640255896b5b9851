"""Spectra by factors agree with dense decompositions and keep their invariants."""

from __future__ import annotations

import pytest
import torch

import hrp
from helpers.factors import factors, module_spectrum, sine
from helpers.tiny import unchecked
from hrp.spectra.factorization import factored_svd
from hrp.spectra.module_spectrum import effective_rank, principal_cosines


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(20, 30, 6), (30, 20, 1), (8, 8, 8)])
def test_factored_svd_agrees_with_the_dense_svd(d_out, d_in, rank, seed):
    lora_A, lora_B = factors(d_out, d_in, rank, seed)
    U, S, Vh = factored_svd(lora_A, lora_B, scaling=1.7)
    U_dense, S_dense, Vh_dense = torch.linalg.svd(1.7 * lora_B @ lora_A, full_matrices=False)
    assert torch.allclose(S, S_dense[:rank], rtol=0, atol=1e-10)
    for k in range(1, rank + 1):
        assert sine(U[:, :k], U_dense[:, :k]) < 1e-10
        assert sine(Vh[:k].mT, Vh_dense[:k].mT) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_factors_times_singular_values_give_the_product_back(seed):
    lora_A, lora_B = factors(seed=seed)
    U, S, Vh = factored_svd(lora_A, lora_B, scaling=0.5)
    assert torch.allclose(U * S @ Vh, 0.5 * lora_B @ lora_A, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rotating_between_the_factors_changes_nothing(seed):
    lora_A, lora_B = factors(seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    U, S, _ = factored_svd(lora_A, lora_B)
    U_mixed, S_mixed, _ = factored_svd(mixing @ lora_A, lora_B @ torch.linalg.inv(mixing))
    assert torch.allclose(S, S_mixed, rtol=1e-9, atol=0)
    assert sine(U[:, :3], U_mixed[:, :3]) < 1e-8


def test_dependent_columns_still_give_orthonormal_vectors():
    lora_A, lora_B = factors()
    lora_B[:, 3] = lora_B[:, 1]
    lora_A[4] = 0
    U, S, Vh = factored_svd(lora_A, lora_B)
    identity = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(U.mT @ U, identity, atol=1e-12)
    assert torch.allclose(Vh @ Vh.mT, identity, atol=1e-12)
    assert S[4:].max() < 1e-12 * S[0]
    assert torch.allclose(U * S @ Vh, lora_B @ lora_A, atol=1e-12)


def test_rank_over_the_matrix_size_is_no_obstacle():
    lora_A, lora_B = factors(d_out=4, d_in=5, rank=9)
    U, S, Vh = factored_svd(lora_A, lora_B)
    assert (U.shape, S.shape, Vh.shape) == ((4, 4), (4,), (4, 5))
    assert torch.allclose(U * S @ Vh, lora_B @ lora_A, atol=1e-12)


def test_a_batch_equals_its_members_one_by_one():
    lora_A, lora_B = factors(batch=(3,))
    U, S, _ = factored_svd(lora_A, lora_B)
    for i in range(3):
        U_one, S_one, _ = factored_svd(lora_A[i], lora_B[i])
        assert torch.allclose(S[i], S_one, atol=1e-12)
        assert sine(U[i, :, :2], U_one[:, :2]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_decomposed_in_float32(dtype):
    lora_A, lora_B = (factor.to(dtype) for factor in factors())
    U, S, _ = factored_svd(lora_A, lora_B)
    assert U.dtype == S.dtype == torch.float32
    assert torch.allclose(U.mT @ U, torch.eye(6), atol=1e-5)


def test_effective_ranks_of_known_spectra():
    flat, one = torch.ones(4), torch.tensor([2.0, 0.0, 0.0])
    for kind in ("entropy", "stable"):
        assert effective_rank(flat, kind) == pytest.approx(4)
        assert effective_rank(one, kind) == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1.0, 1.0]), "energy") == 2
    assert effective_rank(flat, "energy") == 4


@pytest.mark.parametrize("seed", range(3))
def test_effective_ranks_lie_between_one_and_the_rank_and_ignore_scale(seed):
    S = torch.rand(9, generator=torch.Generator().manual_seed(seed)).sort(descending=True).values
    for kind in ("entropy", "stable", "energy"):
        value = effective_rank(S, kind)
        assert 1 <= value <= 9
        assert effective_rank(100 * S, kind) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("S", "kind", "message"),
    [
        (torch.ones(2), "nuclear", "`kind` must be one of"),
        (torch.zeros(2), "stable", "positive singular value"),
    ],
)
def test_effective_rank_refuses(S, kind, message):
    with pytest.raises(ValueError, match=message):
        unchecked(effective_rank)(S, kind)


def test_principal_cosines_of_planes_at_a_known_angle():
    angle = torch.tensor(0.3, dtype=torch.float64)
    X = torch.eye(3, dtype=torch.float64)[:, :2]
    Y = torch.stack([X[:, 0], angle.cos() * X[:, 1] + angle.sin() * torch.eye(3).double()[:, 2]], 1)
    assert torch.allclose(principal_cosines(X, Y), torch.stack([angle.new_tensor(1), angle.cos()]))


def test_alignment_is_one_with_itself_and_symmetric():
    one, two = (hrp.Spectrum({"m": module_spectrum(seed)}) for seed in (0, 1))
    assert one.subspace_alignment(one, 3)["m"].min() > 1 - 1e-9
    there, back = one.subspace_alignment(two, 3), two.subspace_alignment(one, 3)
    assert torch.allclose(there["m"], back["m"])
    assert there["m"].max() < 1


def test_alignment_sides_are_the_left_and_right_subspaces():
    one = module_spectrum()
    turned = hrp.ModuleSpectrum(one.U, one.S, module_spectrum(1).Vh, 1.0)
    assert one.subspace_alignment(turned, 2, "U").min() > 1 - 1e-9
    assert one.subspace_alignment(turned, 2, "Vh").min() < 0.9


def test_crop_keeps_the_leading_triples_of_each_module():
    spectrum = hrp.Spectrum({"big": module_spectrum(rank=6), "small": module_spectrum(rank=2)})
    cropped = spectrum.crop(4)
    assert (cropped["big"].rank, cropped["small"].rank) == (4, 2)
    assert torch.equal(cropped["big"].S, spectrum["big"].S[:4])


def test_crop_of_a_spectrum_equals_the_spectrum_of_the_cropped_update():
    full = module_spectrum()
    cropped = full.crop(3)
    U, S, _ = torch.linalg.svd(cropped.U * cropped.S @ cropped.Vh, full_matrices=False)
    assert torch.allclose(S[:3], full.S[:3])
    assert sine(U[:, :3], full.U[:, :3]) < 1e-10


def test_modules_are_sorted_and_provenance_kept():
    spectrum = hrp.Spectrum({"b": module_spectrum(), "a": module_spectrum()}, {"seed": 3})
    assert list(spectrum) == ["a", "b"]
    assert spectrum.crop(2).provenance == {"seed": 3}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.crop(0), "`rank` must be an integer >= 1, got 0"),
        (lambda s: s.crop(7), "`rank` must be at most 6"),
        (lambda s: s["m"].crop(7), "raise|higher `preheat_rank`"),
        (lambda s: hrp.Spectrum({}), "at least one module"),
        (lambda s: s.subspace_alignment(hrp.Spectrum({"n": s["m"]}), 2), "same modules"),
        (
            lambda s: s.subspace_alignment(hrp.Spectrum({"m": module_spectrum(d_in=31)}), 2),
            "one shape",
        ),
    ],
)
def test_spectrum_refuses(act, message):
    with pytest.raises(ValueError, match=message):
        act(hrp.Spectrum({"m": module_spectrum()}))
