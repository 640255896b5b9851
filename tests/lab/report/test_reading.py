from helpers.synthetic import benchmark, full_record
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report.sections import sentences


def read(records):
    """Return the sentences on the records' first view."""
    return list(sentences(analyse(views(records)[0])))


def test_the_reading_names_the_arms_by_verdict():
    assert "oracle-b, hrp-ab: significantly better than lora." in read(benchmark())
    single = read([full_record("hrp-ab", seed, 1e-3) for seed in range(2)])
    assert single == [
        "No comparison: lora or all others have no results here.",
        "all arms: one learning rate only, not swept; nothing is said of their best.",
    ]


def test_the_reading_names_arms_whose_rate_is_not_settled_instead_of_judging_them():
    wrong = [full_record("pissa", seed, 4e-3, 450, 0, 4.4 + 0.1 * seed) for seed in range(3)]
    unsettled = read([*benchmark(), *wrong, full_record("pissa", 0, 1e-3, 450, 0, 1.43)])
    assert any(line.startswith("pissa: learning rate not settled") for line in unsettled)
    assert not any("significantly worse" in line for line in unsettled)
    assert not any("not settled" in line for line in read([*benchmark(), *wrong]))


def test_a_control_whose_rate_is_not_settled_is_said_first_and_nothing_is_judged():
    lines = read([*benchmark(), full_record("lora", 0, 5e-4, 450, 0, loss=1.2)])
    assert lines[0].startswith("NO VERDICTS: the best learning rate of lora, the control, is not")
    assert "0.0005 does better" in lines[0]
    assert not any("significant" in line for line in lines)


def test_many_variants_of_an_arm_are_counted():
    grid = [
        full_record(
            "hrp-b", seed, 1e-3, 450 - K, K, 1.40 + 0.001 * R, preheat_rank=R, preheat_steps=K
        )
        for R in (4, 8, 16) for K in (10, 20) for seed in range(3)
    ]  # fmt: skip
    text = " ".join(read([*benchmark(), *grid]))
    assert "hrp-b (6 of 6 variants)" in text
    assert "R=4" not in text
