import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from scipy.stats import t as student

from helpers.synthetic import ARMS, at_best, planted_scores, records_of
from hrp_lab.bench.stats import bootstrap_interval, compare, compare_pairs, holm, pool, shared_pool
from hrp_lab.bench.sweeps import scores, select
from hrp_lab.report.summary import PAIRS


def judged(values, arms=ARMS):
    table = scores(records_of(values, arms), "eval_loss")
    return compare(select(table, minimise=True))


def family_wise_errors(benchmarks, seed, **settings):
    generator = np.random.default_rng(seed)
    return sum(
        any(
            comparison.verdict in ("better", "worse")
            for comparison in judged(planted_scores(generator, **settings))
        )
        for _ in range(benchmarks)
    )


@pytest.mark.parametrize("curvature", [0.0, 0.4, 3.0])
def test_200_benchmarks_of_equal_arms_give_at_most_5_percent_false_verdicts(curvature):
    assert family_wise_errors(200, seed=7, curvature=curvature) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("curvature", [0.4, 3.0])
def test_the_arms_of_the_kept_start_give_at_most_5_percent_false_verdicts(curvature):
    arms = tuple(dict.fromkeys(arm for pair in reversed(PAIRS) for arm in reversed(pair)))
    generator = np.random.default_rng(18)
    false = 0
    for _ in range(1000):  # of 200 alone, 12 had one
        values = planted_scores(generator, arms, curvature=curvature)
        best = select(scores(records_of(values, arms), "eval_loss"), minimise=True)
        compared = compare_pairs(best, PAIRS)
        assert len(compared) == len(PAIRS)
        false += any(comparison.verdict in ("better", "worse") for comparison in compared)
    assert false <= 50


def test_deciding_by_the_bootstrap_over_three_seeds_would_fail_the_same_check():
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(200):
        compared = judged(planted_scores(generator, curvature=3.0))
        false += any(
            not comparison.bootstrap[0] <= 0 <= comparison.bootstrap[1] for comparison in compared
        )
    assert false > 50


@pytest.mark.slow
@pytest.mark.parametrize("arms", [2, 3, 20])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_level_holds_for_few_and_many_arms_and_seeds(arms, seeds):
    names = ("lora", *(f"arm-{i}" for i in range(arms - 1)))
    generator = np.random.default_rng(arms * seeds)
    false = 0
    for _ in range(1000):
        compared = judged(planted_scores(generator, names, seeds, curvature=3.0), names)
        false += any(comparison.verdict in ("better", "worse") for comparison in compared)
    assert false <= 50 + 2 * math.sqrt(1000 * 0.05 * 0.95)


NOISE = {
    "growing with the rate": lambda g, shape: (
        g.standard_normal(shape) * np.array([0.5, 0.7, 1, 1.5, 3])[:, None]
    ),
    "heavy-tailed": lambda g, shape: g.standard_t(4, shape),
    "skewed": lambda g, shape: g.gamma(1.5, 1, shape),
    "alike over rates": lambda g, shape: (
        0.5 * g.standard_normal(shape) + g.standard_normal((shape[0], 1, shape[2]))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_the_level_holds_for_noise_that_is_not_normal_or_not_even(kind, curvature):
    names = ("lora", *(f"arm-{i}" for i in range(9)))
    generator = np.random.default_rng(11)
    false = 0
    for _ in range(1000):
        values = NOISE[kind](generator, (10, 5, 3))
        values = values + curvature * (np.arange(5) - 2.0)[:, None] ** 2
        compared = judged(values, names)
        false += any(comparison.verdict in ("better", "worse") for comparison in compared)
    assert false <= 50 + 2 * math.sqrt(1000 * 0.05 * 0.95)


def test_a_planted_effect_is_found_and_planted_nulls_beside_it_are_not():
    generator = np.random.default_rng(3)
    right = mistaken = 0
    for _ in range(100):
        verdicts = {
            comparison.arm: comparison.verdict
            for comparison in judged(planted_scores(generator, effects={"hrp-ab": -6.0}))
        }
        right += verdicts.pop("hrp-ab") == "better"
        mistaken += any(verdict != "no significant difference" for verdict in verdicts.values())
    assert right >= 95
    assert mistaken <= 5


def test_a_planted_harm_is_called_worse_and_more_is_better_for_accuracies():
    values = planted_scores(np.random.default_rng(0), effects={"pissa": 9.0})
    best = select(scores(records_of(values), "eval_loss"), minimise=True)
    verdict = {comparison.arm: comparison.verdict for comparison in compare(best)}
    assert verdict["pissa"] == "worse"
    mirrored = select(scores(records_of(-values), "eval_loss"), minimise=False)
    assert {comparison.arm: comparison.verdict for comparison in compare(mirrored)} == verdict


def test_two_arms_alone_are_compared_by_the_paired_t_test():
    best = at_best(lora=[1.0, 2.0, 4.0], other=[0.5, 1.0, 3.8])
    (comparison,) = compare(best)
    differences = np.array([-0.5, -1.0, -0.2])
    error = differences.std(ddof=1) / math.sqrt(3)
    assert comparison.difference == pytest.approx(differences.mean())
    assert comparison.p_value == pytest.approx(2 * student.sf(-differences.mean() / error, 2))
    half = student.isf(0.025, 2) * error
    assert comparison.interval == pytest.approx(
        (comparison.difference - half, comparison.difference + half)
    )


def test_the_pool_is_the_residual_variance_of_the_two_way_layout():
    generator = np.random.default_rng(1)
    values = {f"arm{i}": generator.standard_normal(3) + np.arange(3) for i in range(6)}
    shared = pool(at_best(**values), [0, 1, 2])
    rows = np.array(list(values.values()))
    design = np.zeros((18, 6 + 2))
    for arm in range(6):
        for seed in range(3):
            design[arm * 3 + seed, arm] = 1
            if seed:
                design[arm * 3 + seed, 5 + seed] = 1
    residual = np.linalg.lstsq(design, rows.ravel(), rcond=None)[1][0]
    assert shared.degrees == 18 - 8
    assert shared.variance == pytest.approx(residual / shared.degrees)


def test_an_arm_that_scatters_wildly_neither_hides_the_others_nor_borrows_their_variance():
    generator = np.random.default_rng(5)
    values = {f"arm{i}": list(generator.standard_normal(3)) for i in range(8)}
    values["lora"] = list(generator.standard_normal(3) + 12)
    values["wild"] = [-100.0, 60.0, 45.0]
    compared = {comparison.arm: comparison for comparison in compare(at_best(**values))}
    assert not compared["wild"].pooled
    assert compared["wild"].verdict == "no significant difference"
    assert all(compared[f"arm{i}"].verdict == "better" for i in range(8))


def test_a_pair_that_scatters_more_than_the_pool_is_held_to_its_own_spread():
    generator = np.random.default_rng(2)
    values = {f"arm{i}": list(generator.standard_normal(3)) for i in range(12)}
    best = at_best(lora=[0.0, 0.0, 0.0], loose=[2.0, 0.0, -2.0], **values)
    loose = next(comparison for comparison in compare(best) if comparison.arm == "loose")
    error = (loose.interval[1] - loose.difference) / student.isf(0.025, 13 * 2)
    assert loose.pooled
    assert error == pytest.approx(np.std([2.0, 0.0, -2.0], ddof=1) / math.sqrt(3))


def test_scores_without_any_spread_give_no_verdict():
    best = at_best(lora=[0.5] * 3, other=[0.25] * 3, third=[0.5] * 3)
    assert {comparison.verdict for comparison in compare(best)} == {"no significant difference"}


def test_an_arm_that_lacks_a_seed_is_incomplete_and_leaves_the_others_as_they_were():
    values = planted_scores(np.random.default_rng(0))
    table = scores(records_of(values), "eval_loss")
    without = {arm: by_rate for arm, by_rate in table.items() if arm != "pissa"}
    lacking = dict(table, pissa={rate: {0: 1.0, 1: 1.0} for rate in table["pissa"]})
    compared = compare(select(lacking, minimise=True))
    assert {comparison.verdict for comparison in compared if comparison.arm == "pissa"} == {
        "incomplete"
    }
    others = [comparison for comparison in compared if comparison.arm != "pissa"]
    assert others == compare(select(without, minimise=True))


def with_unsettled(table, arm, offset=100.0):
    """``arm`` at a wrong rate with all its seeds, and its good one on the first seed alone."""
    good = table[arm][2e-3]
    wrong = {seed: value + offset * (1 + 0.1 * seed) for seed, value in good.items()}
    return dict(table, **{arm: {4e-3: wrong, 2e-3: {0: good[0]}}})


def test_an_arm_stuck_at_a_wrong_rate_has_no_verdict_and_leaves_the_others_as_they_were():
    table = scores(records_of(planted_scores(np.random.default_rng(0))), "eval_loss")
    without = {arm: by_rate for arm, by_rate in table.items() if arm != "pissa"}
    compared = compare(select(with_unsettled(table, "pissa"), minimise=True))
    (stuck,) = [comparison for comparison in compared if comparison.arm == "pissa"]
    assert (stuck.verdict, stuck.judged) == ("rate not settled", False)
    assert math.isnan(stuck.holm_p)
    others = [comparison for comparison in compared if comparison.arm != "pissa"]
    assert others == compare(select(without, minimise=True))


def test_a_control_stuck_at_a_wrong_rate_gives_no_verdict_at_all():
    table = scores(records_of(planted_scores(np.random.default_rng(0))), "eval_loss")
    best = select(with_unsettled(table, "lora"), minimise=True)
    assert {comparison.verdict for comparison in compare(best)} == {"rate not settled"}
    assert shared_pool(best) is None


def test_one_seed_is_never_enough_for_a_verdict():
    best = at_best(lora=[3.0], other=[1.0])
    assert [comparison.verdict for comparison in compare(best)] == ["incomplete"]


def test_a_control_without_results_is_named():
    with pytest.raises(ValueError, match=r"`control` must be an arm with results, \['other'\]"):
        compare(at_best(other=[1.0, 2.0]))


def test_holm_matches_its_definition():
    p_values = list(np.random.default_rng(0).uniform(size=9) ** 3)
    order = np.argsort(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for smaller, index in enumerate(order):
            if p_values[index] > level / (9 - smaller):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_more_pairs_make_every_verdict_harder():
    best = at_best(lora=[3.0, 3.1, 3.3], a=[2.0, 2.2, 2.3], b=[2.5, 2.7, 2.6], c=[2.6, 2.6, 2.9])
    few = compare_pairs(best, [("a", "lora")])[0]
    many = compare_pairs(best, [(x, y) for x in "ab" for y in ("lora", "c")])
    alike = next(
        comparison for comparison in many if (comparison.arm, comparison.control) == ("a", "lora")
    )
    assert alike.p_value == few.p_value
    assert alike.holm_p > few.holm_p


def test_the_bootstrap_interval_is_scipy_s_and_the_same_each_time():
    values = np.random.default_rng(0).standard_normal(12)
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, confidence_level=0.95
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), abs=0.05)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_comparisons_do_not_depend_on_the_order_of_records():
    records = records_of(planted_scores(np.random.default_rng(4)))
    straight = compare(select(scores(records, "eval_loss"), minimise=True))
    turned = compare(select(scores(records[::-1], "eval_loss"), minimise=True))
    assert [dataclasses.astuple(a)[:3] for a in straight] == [
        dataclasses.astuple(a)[:3] for a in turned
    ]
    assert [a.holm_p for a in straight] == pytest.approx([a.holm_p for a in turned])
