"""Seeded pre-training text for the demo's base model: English made from a small grammar.

Plain sentences, short stories, lists, counting and bare sums, on the words of
``hrp.demo.lexicon``. The text asks questions and states sums but never works a question out, so
that fine-tuning on ``hrp.demo.wordproblems`` is a real shift of task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hrp.demo.lexicon import COLORS, DAYS, PLACES, THINGS, Person, plural_of, two_people


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end, the same ones for the same seed; a few lines each."""
    rng = random.Random(f"corpus-{seed}")
    makers = list(MAKERS)
    weights = list(MAKERS.values())
    while True:
        yield rng.choices(makers, weights)[0](rng)


def _sum(rng: random.Random) -> str:
    """A true equation in the number range of the word problems, at most 100."""
    operator = rng.choice("++--*/")
    if operator in "+-":
        total = rng.randint(2, 100)
        a = rng.randint(1, total - 1)
        return f"{a} + {total - a} = {total}" if operator == "+" else f"{total} - {a} = {total - a}"
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return f"{a} * {b} = {a * b}" if operator == "*" else f"{a * b} / {b} = {a}"


def _sums(rng: random.Random) -> str:
    """True equations, a line each or all on one."""
    return rng.choice(["\n", "; "]).join(_sum(rng) for _ in range(rng.randint(3, 8)))


def _counting(rng: random.Random) -> str:
    step = rng.choice([1, 1, 2, 3, 4, 5, 10])
    start, length = rng.randint(0, 40), rng.randint(5, 12)
    numbers = [start + step * i for i in range(length)]
    if rng.random() < 0.3:
        numbers.reverse()
    return ", ".join(map(str, numbers))


def _list(rng: random.Random) -> str:
    things = rng.sample(THINGS, rng.randint(2, 5))
    counted = [plural_of(rng.randint(1, 60), thing) for thing in things]
    head = rng.choice(
        [f"In the {rng.choice(PLACES)} there are", "On the table there are", "The box holds"]
    )
    return f"{head} {', '.join(counted[:-1])} and {counted[-1]}."


def _sentence(rng: random.Random, one: Person, other: Person) -> str:
    """One sentence about ``one``, numbers in it never worked with."""
    thing, place, day = rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    a, b = rng.randint(2, 70), rng.randint(2, 9)
    who = rng.choice([one.name, one.subject.capitalize()])
    patterns = [
        f"{who} has {a} {thing.plural}.",
        f"{who} has {b} {thing.containers} with {rng.randint(2, 9)} {thing.plural} in each.",
        f"{who} finds a {rng.choice(COLORS)} {thing.singular} in the {place}.",
        f"{who} gives {b} {thing.plural} to {other.name}.",
        f"{who} buys {plural_of(b, thing)} for {a} dollars on {day}.",
        f"{who} goes to the {place} on {day}.",
        f"{who} works in the {place} for {b} hours.",
        f"{who} keeps the {rng.choice(COLORS)} {thing.plural} in a {thing.container}.",
        f"Each {thing.container} in the {place} holds {b} {thing.plural}.",
        f"Then {one.subject} shares the {thing.plural} with {one.possessive} friends.",
        f"First {one.subject} loses {one.possessive} {thing.plural} in the {place}.",
        f"Together they have many {thing.plural} left.",
        f"The {thing.plural} cost {a} dollars in total.",
        f"{other.name} gets back the {thing.plural} that {one.subject} has saved.",
    ]
    return rng.choice(patterns)


def _sentences(rng: random.Random) -> str:
    return " ".join(_sentence(rng, *two_people(rng)) for _ in range(rng.randint(2, 4)))


def _story(rng: random.Random) -> str:
    """Several sentences about the same two people."""
    one, other = two_people(rng)
    first = f"{one.name} and {other.name} meet in the {rng.choice(PLACES)}."
    middle = [_sentence(rng, one, other) for _ in range(rng.randint(2, 5))]
    last = rng.choice(["Then they go home.", "They are friends.", f"{other.name} is happy now."])
    return " ".join([first, *middle, last])


def _question(rng: random.Random) -> str:
    """A question that nobody answers."""
    (one, other), thing = two_people(rng), rng.choice(THINGS)
    question = rng.choice(
        [
            f"How many {thing.plural} does {one.name} have now?",
            f"How many {thing.plural} are there in the {rng.choice(PLACES)} altogether?",
            f"How many dollars does {one.name} have left?",
            f"How many {thing.plural} does each friend get in all?",
        ]
    )
    reply = rng.choice(
        [
            f"{other.name} does not know.",
            "Nobody knows.",
            f"{one.name} does not say.",
            f"{other.name} goes to the {rng.choice(PLACES)} to see.",
        ]
    )
    return f"{question} {reply}"


# Maker -> weight in documents; sums weigh most because they are the hardest to learn.
MAKERS: dict[Callable[[random.Random], str], float] = {
    _sums: 5.0,
    _counting: 1.0,
    _list: 1.0,
    _sentences: 1.5,
    _story: 1.5,
    _question: 0.5,
}
