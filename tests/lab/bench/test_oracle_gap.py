import numpy as np
import pytest

from helpers.synthetic import at_best
from hrp_lab.bench.stats import gap_closed, shared_pool


def shares_of(best, oracle="oracle"):
    return gap_closed(shared_pool(best), oracle)


def test_gap_closed_is_0_for_the_control_s_equal_and_1_for_the_oracle_s():
    base = np.array([3.0, 3.2, 2.9])
    wiggle = np.array([0.01, -0.01, 0.0])
    best = at_best(
        lora=base,
        same=base + wiggle,
        half=base - 0.5 - wiggle,
        oracle=base - 1,
        twin=base - 1 + wiggle,
    )
    shares = shares_of(best)
    assert {arm: round(share.share, 6) for arm, share in shares.items()} == {
        "same": 0.0, "half": 0.5, "twin": 1.0,
    }  # fmt: skip
    assert all(share.low < share.share < share.high for share in shares.values())


def noisy(generator, noise, oracle=1.0):
    """Ten arms, three seeds; "arm" closes 40 % of a gap of 1."""
    values = noise * generator.standard_normal((10, 3)) + generator.standard_normal(3)
    means = dict(zip("abcdefg", np.full(7, 1.2), strict=True), lora=2.0, oracle=oracle, arm=1.6)
    return at_best(**{arm: values[i] + mean for i, (arm, mean) in enumerate(means.items())})


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_the_interval_of_a_share_holds_the_true_one_in_95_of_100_benchmarks(noise):
    generator = np.random.default_rng(0)
    shares = [shares_of(noisy(generator, noise)).get("arm") for _ in range(400)]
    given = [share for share in shares if share]
    assert len(given) >= 380
    # The larger of the pooled and the unpooled variance makes it wider, not narrower.
    assert sum(share.low <= 0.4 <= share.high for share in given) >= 0.94 * len(given)
    assert np.mean([share.high - share.low for share in given]) < 12 * noise


def test_the_limits_are_the_shares_whose_contrast_is_just_significant():
    best = noisy(np.random.default_rng(3), 0.1)
    shared, share = shared_pool(best), shares_of(best)["arm"]
    values = {
        arm: np.array([sweep.values[seed] for seed in range(3)]) for arm, sweep in best.items()
    }
    ratios = []
    for f in (share.low, share.high):
        contrast = (1 - f) * values["lora"] - values["arm"] + f * values["oracle"]
        weight = (1 - f) ** 2 + 1 + f**2
        error, degrees = shared.standard_error(contrast, {"lora", "arm", "oracle"}, weight)
        assert degrees == 18
        ratios.append(abs(contrast.mean()) / error)
    assert ratios == pytest.approx([2.1009, 2.1009], rel=1e-4)


def test_no_share_is_given_of_a_gap_that_is_not_there():
    level = noisy(np.random.default_rng(0), 0.3, oracle=2.0)
    assert shares_of(level) == {}
    assert shares_of(level, "nowhere") == {}
