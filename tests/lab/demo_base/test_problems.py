from __future__ import annotations

import random
import re

import pytest

from hrp.demo.data import read_problems
from hrp_lab.demo_base.problems import EMBEDDED, KINDS, make_problems, split_of

EQUATION = re.compile(r"(\d+) ([+\-*/]) (\d+) = (\d+)")
MANY = 600


def worked(problem: dict[str, str]) -> list[tuple[int, str, int, int]]:
    rows = EQUATION.findall(problem["answer"])
    return [(int(a), operator, int(b), int(c)) for a, operator, b, c in rows]


def holds(a: int, operator: str, b: int, c: int) -> bool:
    return {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[operator]


def test_the_same_seed_draws_the_same_problems() -> None:
    assert make_problems(50, seed=3) == make_problems(50, seed=3)


def test_more_problems_of_a_seed_begin_with_the_fewer() -> None:
    assert make_problems(50, seed=3)[:20] == make_problems(20, seed=3)


def test_another_seed_draws_other_problems() -> None:
    assert make_problems(50, seed=3) != make_problems(50, seed=4)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (7, 3)])
def test_train_and_test_share_no_question_whatever_the_seeds(seeds: tuple[int, int]) -> None:
    train = {problem["question"] for problem in make_problems(MANY, seeds[0], "train")}
    test = {problem["question"] for problem in make_problems(MANY, seeds[1], "test")}
    assert len(train) == len(test) == MANY
    assert not train & test
    assert {split_of(question) for question in test} == {"test"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_worked_step_is_right_and_the_last_one_is_the_answer(split: str) -> None:
    for problem in make_problems(MANY, seed=1, split=split):
        steps = worked(problem)
        assert all(holds(*step) for step in steps), problem
        assert problem["answer"].splitlines()[-1] == f"#### {steps[-1][3]}"


def test_every_step_works_on_the_questions_numbers_or_on_earlier_results() -> None:
    for problem in make_problems(MANY, seed=2):
        known = set(map(int, re.findall(r"\d+", problem["question"])))
        for a, _, b, c in worked(problem):
            assert {a, b} <= known, problem
            known.add(c)


def test_no_number_leaves_the_range_that_the_base_model_has_seen_sums_in() -> None:
    numbers = [n for p in make_problems(MANY, seed=5) for step in worked(p) for n in step[::2]]
    results = [step[3] for p in make_problems(MANY, seed=5) for step in worked(p)]
    assert all(1 <= n <= 100 for n in numbers + results)


def test_every_kind_is_drawn_and_answers_take_one_to_three_steps() -> None:
    steps = {len(worked(problem)) for problem in make_problems(MANY, seed=0)}
    assert steps == {1, 2, 3}
    own = {len(kind(random.Random(0))[1]) for kind in KINDS}
    assert own == {1, 2, 3}


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`n` must be an integer >= 0, got -1"):
        make_problems(-1, seed=0)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test', got 'dev'"):
        make_problems(1, seed=0, split="dev")


@pytest.mark.parametrize("split", EMBEDDED)
def test_the_library_s_problems_are_the_first_of_seed_0(split: str) -> None:
    assert read_problems(split) == make_problems(EMBEDDED[split], seed=0, split=split)
