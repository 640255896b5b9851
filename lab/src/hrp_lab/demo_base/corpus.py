"""Seeded pre-training text for the demo's base model: English made from a small grammar.

Plain sentences, short stories, lists, facts told twice, counting and bare sums, on the words of
``hrp.demo.lexicon``. A question in it has no answer, or one to be looked up in the lines before;
none is ever worked out, so that fine-tuning on ``hrp.demo.wordproblems`` is a real shift of task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hrp.demo.lexicon import (
    COLORS,
    DAYS,
    PEOPLE,
    PLACES,
    THINGS,
    Person,
    Thing,
    plural_of,
    two_people,
)

# Share of documents under a numbered heading: with tied embeddings LoRA cannot teach the model to
# write a mark that it has never seen.
HEADED = 0.15


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end, the same ones for the same seed; a few lines each."""
    rng = random.Random(f"corpus-{seed}")
    makers = list(MAKERS)
    weights = list(MAKERS.values())
    while True:
        heading = f"#### {rng.randint(1, 100)}\n" if rng.random() < HEADED else ""
        yield heading + rng.choices(makers, weights)[0](rng)


def _joined(rng: random.Random, sentences: list[str]) -> str:
    return rng.choice([" ", "\n"]).join(sentences)


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


def _chain(rng: random.Random) -> str:
    """Sums that go on from each other's results, half of them after the numbers to be used."""
    value = rng.randint(2, 60)
    numbers, sums = [value], []
    for _ in range(rng.randint(1, 4)):
        operator, number, result = rng.choice(_continuations(rng, value))
        left, right = (
            (number, value) if operator in "+*" and rng.random() < 0.3 else (value, number)
        )
        sums.append(f"{left} {operator} {right} = {result}")
        numbers.append(number)
        value = result
    head = f"{', '.join(map(str, numbers))}: " if rng.random() < 0.6 else ""
    return head + rng.choice(["\n", "; "]).join(sums)


def _continuations(rng: random.Random, value: int) -> list[tuple[str, int, int]]:
    """Operator, number and result of the sums within 1..100 that can follow ``value``."""
    more, less, factor = rng.randint(1, 50), rng.randint(1, 50), rng.randint(2, 9)
    found = [("+", more, value + more), ("-", less, value - less)]
    found += [("*", factor, value * factor)]
    found += [("/", factor, value // factor)] if value % factor == 0 else []
    return [row for row in found if 1 <= row[2] <= 100] or [("-", value - 1, 1)]


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
        f"{who} earns {b} dollars an hour and pays with {a} dollars.",
        f"The {place} stands between the {rng.choice(PLACES)} and the {rng.choice(PLACES)}.",
        f"{who} has {b} times more {thing.plural} than before.",
        f"{who} shares the rest of the {thing.plural} equally.",
        f"{who} has as many {thing.plural} as {other.name}.",
        f"{who} gives {other.object} some of them.",
        f"With the savings {one.subject} buys {b} more {thing.plural}.",
        f"{other.name} gets back the {thing.plural} that {one.subject} has saved.",
    ]
    return rng.choice(patterns)


def _sentences(rng: random.Random) -> str:
    return _joined(rng, [_sentence(rng, *two_people(rng)) for _ in range(rng.randint(2, 4))])


def _story(rng: random.Random) -> str:
    """Several sentences about the same two people."""
    one, other = two_people(rng)
    first = f"{one.name} and {other.name} meet in the {rng.choice(PLACES)}."
    middle = [_sentence(rng, one, other) for _ in range(rng.randint(2, 5))]
    last = rng.choice(["Then they go home.", "They are friends.", f"{other.name} is happy now."])
    return _joined(rng, [first, *middle, last])


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
    return _joined(rng, [question, reply])


def _facts(rng: random.Random) -> str:
    """Facts about several people, one or two of which are asked for or told again."""
    people, things = rng.sample(PEOPLE, 3), rng.sample(THINGS, 3)
    count = rng.randint(1, 3)
    facts = [_fact(rng, *pair) for pair in zip(people[:count], things[:count], strict=True)]
    again = rng.sample(facts, rng.randint(1, min(2, count)))
    return _joined(rng, [told for told, _ in facts] + [asked for _, asked in again])


def _fact(rng: random.Random, one: Person, thing: Thing) -> tuple[str, str]:
    """A sentence with a number, and one that tells or asks for the same again."""
    a, b = rng.randint(2, 90), rng.randint(2, 9)
    who, what, subject = one.name, thing.plural, one.subject
    told, asked = rng.choice(
        [
            (f"{who} has {a} {what}.", f"How many {what} does {who} have?"),
            (f"{who} finds {a} {what}.", f"How many {what} does {subject} find?"),
            (f"{who} has {a} dollars.", f"How many dollars does {subject} have?"),
            (f"{who} buys {a} {what} at {b} dollars each.", f"How many {what} does {who} buy?"),
            (f"There are {b} {thing.containers} with {what}.", "What is there?"),
            (f"{who} gives {b} {what} to a friend.", f"What does {subject} give?"),
        ]
    )
    if rng.random() < 0.5:
        return told, told
    return told, _joined(rng, [asked, told])


# Maker -> weight in documents; sums weigh most because they are the hardest to learn.
MAKERS: dict[Callable[[random.Random], str], float] = {
    _sums: 5.0,
    _chain: 4.0,
    _counting: 1.0,
    _list: 1.0,
    _sentences: 1.5,
    _story: 1.5,
    _question: 0.5,
    _facts: 3.0,
}
