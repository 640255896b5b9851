"""Makes seeded English word problems with worked answers, the demo's fine-tuning task.

Each answer works the problem out in one to three equations, a line each, and ends in ``#### N``
like GSM8K's. ``python -m hrp_lab.demo_base.problems`` writes those that the library brings along.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Literal, get_args

from hrp.demo.data import PROBLEMS
from hrp.files import write_text
from hrp.validation import check_choice, check_integer
from hrp_lab.demo_base.lexicon import DAYS, PEOPLE, THINGS, Person, Thing, plural_of, two_people

Split = Literal["train", "test"]

EMBEDDED = {"train": 2000, "test": 200}  # of seed 0

# One question in five is a test question, whatever the seed that drew it.
TEST_SHARE = 5

# A question, the lines of its worked answer, and the number asked for.
Worked = tuple[str, list[str], int]


def make_problems(n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
    """Draw ``n`` different problems, each a dict with keys ``question`` and ``answer``.

    The split of a problem follows from its question alone (a hash of the text), so problems of
    ``"train"`` and of ``"test"`` never meet, whatever their seeds.

    Raises:
        ValueError: ``n`` is negative, or ``split`` is neither ``"train"`` nor ``"test"``.

    >>> make_problems(1, seed=0) == make_problems(1, seed=0)
    True
    """
    check_integer("n", n, minimum=0)
    check_choice("split", split, get_args(Split))
    rng = random.Random(f"{split}-{seed}")
    problems: dict[str, str] = {}
    while len(problems) < n:
        question, lines, result = rng.choice(KINDS)(rng)
        if split_of(question) == split:
            problems[question] = "\n".join([*lines, f"#### {result}"])
    return [{"question": question, "answer": answer} for question, answer in problems.items()]


def split_of(question: str) -> Split:
    """Return the split that a question belongs to, one fifth of all being ``"test"``."""
    digest = hashlib.sha256(question.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % TEST_SHARE == 0 else "train"


def _equation(left: int, operator: str, right: int) -> tuple[str, int]:
    """Return ``("3 + 4 = 7", 7)``; a division must come out even."""
    results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
    result = results[operator]
    return f"{left} {operator} {right} = {result}", result


def _in_all(rng: random.Random) -> str:
    return rng.choice(["in all", "altogether", "in total"])


def _one(rng: random.Random) -> tuple[Person, Thing]:
    return rng.choice(PEOPLE), rng.choice(THINGS)


def _gets_more(rng: random.Random) -> Worked:
    """Ask for one addition."""
    (one, other), thing = two_people(rng), rng.choice(THINGS)
    a, b = rng.randint(2, 50), rng.randint(2, 39)
    first = f"{one.name} has {plural_of(a, thing)}. "
    question = first + rng.choice(
        [
            f"{other.name} gives {one.object} {b} more. "
            f"How many {thing.plural} does {one.name} have now?",
            f"{one.subject.capitalize()} buys {b} more {thing.plural} at the market. "
            f"How many {thing.plural} does {one.subject} have {_in_all(rng)}?",
        ]
    )
    equation, total = _equation(a, "+", b)
    return question, [f"{one.name} has {equation} {thing.plural}."], total


def _gives_away(rng: random.Random) -> Worked:
    """Ask for one subtraction."""
    (one, other), thing = two_people(rng), rng.choice(THINGS)
    left, b = rng.randint(1, 40), rng.randint(2, 39)
    a = left + b
    question = f"{one.name} has {plural_of(a, thing)}. " + rng.choice(
        [
            f"{one.subject.capitalize()} gives {b} of them to {other.name}. ",
            f"{one.subject.capitalize()} loses {b} of them on {rng.choice(DAYS)}. ",
        ]
    )
    question += f"How many {thing.plural} does {one.name} have left?"
    equation, rest = _equation(a, "-", b)
    return question, [f"{one.name} has {equation} {thing.plural} left."], rest


def _equal_groups(rng: random.Random) -> Worked:
    """Ask for one multiplication."""
    one, thing = _one(rng)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    question = rng.choice(
        [
            f"{one.name} has {a} {thing.containers} with {b} {thing.plural} in each. "
            f"How many {thing.plural} does {one.subject} have {_in_all(rng)}?",
            f"There are {a} {thing.containers}. Each {thing.container} holds "
            f"{b} {thing.plural}. How many {thing.plural} are there {_in_all(rng)}?",
        ]
    )
    equation, total = _equation(a, "*", b)
    return question, [f"There are {equation} {thing.plural}."], total


def _shares(rng: random.Random) -> Worked:
    """Ask for one division that comes out even."""
    one, thing = _one(rng)
    each, b = rng.randint(2, 9), rng.randint(2, 9)
    a = each * b
    question = f"{one.name} shares {a} {thing.plural} " + rng.choice(
        [
            f"equally between {b} friends. How many {thing.plural} does each friend get?",
            f"equally between {b} {thing.containers}. "
            f"How many {thing.plural} are in each {thing.container}?",
        ]
    )
    equation, _ = _equation(a, "/", b)
    return question, [f"Each gets {equation} {thing.plural}."], each


def _gets_and_gives(rng: random.Random) -> Worked:
    """Ask for an addition, then a subtraction."""
    (one, other), thing = two_people(rng), rng.choice(THINGS)
    a, b = rng.randint(5, 50), rng.randint(2, 30)
    c = rng.randint(2, a + b - 1)
    question = (
        f"{one.name} has {a} {thing.plural} and finds {b} more on {rng.choice(DAYS)}. "
        f"Then {one.subject} gives {c} of them to {other.name}. "
        f"How many {thing.plural} does {one.name} have left?"
    )
    first, total = _equation(a, "+", b)
    second, rest = _equation(total, "-", c)
    lines = [f"First {one.subject} has {first} {thing.plural}."]
    return question, [*lines, f"Then {one.subject} has {second} {thing.plural} left."], rest


def _times_as_many(rng: random.Random) -> Worked:
    """Ask for a multiplication, then an addition."""
    (one, other), thing = two_people(rng), rng.choice(THINGS)
    a, times = rng.randint(2, 9), rng.randint(2, 5)
    question = (
        f"{one.name} has {a} {thing.plural}. {other.name} has {times} times as many. "
        f"How many {thing.plural} do they have {_in_all(rng)}?"
    )
    first, product = _equation(times, "*", a)
    second, total = _equation(a, "+", product)
    lines = [f"{other.name} has {first} {thing.plural}."]
    return question, [*lines, f"Together they have {second} {thing.plural}."], total


def _change(rng: random.Random) -> Worked:
    """Ask for a multiplication, then a subtraction from what was paid."""
    one, thing = _one(rng)
    a, price = rng.randint(2, 9), rng.randint(2, 9)
    paid = a * price + rng.randint(1, 19)
    question = (
        f"{one.name} buys {a} {thing.plural} at {price} dollars each and pays with {paid} dollars. "
        f"How many dollars does {one.subject} get back?"
    )
    first, cost = _equation(a, "*", price)
    second, rest = _equation(paid, "-", cost)
    lines = [f"The {thing.plural} cost {first} dollars."]
    return question, [*lines, f"{one.name} gets back {second} dollars."], rest


def _packs_and_loose(rng: random.Random) -> Worked:
    """Ask for a multiplication, then an addition of loose things."""
    one, thing = _one(rng)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 19)
    question = (
        f"{one.name} has {a} {thing.containers} with {b} {thing.plural} in each "
        f"and {c} more {thing.plural} on the table. "
        f"How many {thing.plural} does {one.subject} have {_in_all(rng)}?"
    )
    first, packed = _equation(a, "*", b)
    second, total = _equation(packed, "+", c)
    lines = [f"In the {thing.containers} there are {first} {thing.plural}."]
    return question, [*lines, f"{one.name} has {second} {thing.plural}."], total


def _collects_and_shares(rng: random.Random) -> Worked:
    """Ask for addition, subtraction and division."""
    one, thing = _one(rng)
    each, friends, c = rng.randint(2, 9), rng.randint(2, 6), rng.randint(1, 9)
    total = each * friends + c
    a = rng.randint(1, total - 1)
    question = (
        f"{one.name} finds {plural_of(a, thing)} on {DAYS[0]} and {total - a} on {DAYS[1]}. "
        f"{one.subject.capitalize()} keeps {c} and shares the rest equally between "
        f"{friends} friends. How many {thing.plural} does each friend get?"
    )
    first, _ = _equation(a, "+", total - a)
    second, rest = _equation(total, "-", c)
    third, _ = _equation(rest, "/", friends)
    lines = [f"{one.name} finds {first} {thing.plural}.", f"The rest is {second} {thing.plural}."]
    return question, [*lines, f"Each friend gets {third} {thing.plural}."], each


def _earns_and_spends(rng: random.Random) -> Worked:
    """Ask for multiplication, addition and subtraction, in dollars."""
    one, thing = _one(rng)
    hours, wage, saved = rng.randint(2, 8), rng.randint(3, 9), rng.randint(2, 19)
    price = rng.randint(2, hours * wage + saved - 1)
    question = (
        f"{one.name} works {hours} hours for {wage} dollars an hour. "
        f"{one.subject.capitalize()} has saved {saved} dollars before. "
        f"Then {one.subject} buys {thing.plural} for {price} dollars. "
        f"How many dollars does {one.subject} have left?"
    )
    first, earned = _equation(hours, "*", wage)
    second, total = _equation(earned, "+", saved)
    third, rest = _equation(total, "-", price)
    lines = [f"{one.name} earns {first} dollars.", f"With the savings that is {second} dollars."]
    return question, [*lines, f"{one.name} has {third} dollars left."], rest


KINDS: list[Callable[[random.Random], Worked]] = [
    _gets_more,
    _gives_away,
    _equal_groups,
    _shares,
    _gets_and_gives,
    _times_as_many,
    _change,
    _packs_and_loose,
    _collects_and_shares,
    _earns_and_spends,
]


def embedded(split: str) -> str:
    """Return the content of the library's file of a split: a JSON object a line."""
    problems = make_problems(EMBEDDED[split], seed=0, split=split)
    return "".join(f"{json.dumps(problem)}\n" for problem in problems)


if __name__ == "__main__":
    for name in EMBEDDED:
        write_text(PROBLEMS / f"{name}.jsonl", embedded(name))
