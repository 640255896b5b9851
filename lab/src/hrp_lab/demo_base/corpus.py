"""Write seeded pre-training text for the demo's base model: English made from a small grammar.

It has plain sentences, short stories, lists, facts told twice, counting and bare sums, on the words
of ``lexicon``. A question in it has no answer, or one to be looked up in the lines before;
none is ever worked out, so that fine-tuning on ``problems`` is a real shift of task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from hrp_lab.demo_base.lexicon import (
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

# This share of documents has a numbered heading: with tied embeddings LoRA cannot teach the model
# to write a mark that it has never seen.
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
    """Write a true equation in the number range of the word problems, at most 100."""
    operator = rng.choice("++--*/")
    if operator in "+-":
        total = rng.randint(2, 100)
        a = rng.randint(1, total - 1)
        return f"{a} + {total - a} = {total}" if operator == "+" else f"{total} - {a} = {total - a}"
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return f"{a} * {b} = {a * b}" if operator == "*" else f"{a * b} / {b} = {a}"


def _sums(rng: random.Random) -> str:
    """Write true equations, a line each or all on one line."""
    return rng.choice(["\n", "; "]).join(_sum(rng) for _ in range(rng.randint(3, 8)))


def _chain(rng: random.Random) -> str:
    """Write sums that go on from each other's results, often after the numbers to be used."""
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
    """List operator, number and result of the sums within 1..100 that can follow ``value``."""
    more, less, factor = rng.randint(1, 50), rng.randint(1, 50), rng.randint(2, 9)
    sums = [("+", more, value + more), ("-", less, value - less), ("*", factor, value * factor)]
    sums += [("/", factor, value // factor)] if value % factor == 0 else []
    return [row for row in sums if 1 <= row[2] <= 100] or [("-", value - 1, 1)]


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


def _sentence(rng: random.Random, person: Person, other: Person) -> str:
    """Write a sentence about ``person`` whose numbers are never worked with."""
    thing, place, day = rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    a, b = rng.randint(2, 70), rng.randint(2, 9)
    who = rng.choice([person.name, person.subject.capitalize()])
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
        f"Then {person.subject} shares the {thing.plural} with {person.possessive} friends.",
        f"First {person.subject} loses {person.possessive} {thing.plural} in the {place}.",
        f"Together they have many {thing.plural} left.",
        f"The {thing.plural} cost {a} dollars in total.",
        f"{who} earns {b} dollars an hour and pays with {a} dollars.",
        f"The {place} stands between the {rng.choice(PLACES)} and the {rng.choice(PLACES)}.",
        f"{who} has {b} times more {thing.plural} than before.",
        f"{who} shares the rest of the {thing.plural} equally.",
        f"{who} has as many {thing.plural} as {other.name}.",
        f"{who} gives {other.object} some of them.",
        f"With the savings {person.subject} buys {b} more {thing.plural}.",
        f"{other.name} gets back the {thing.plural} that {person.subject} has saved.",
    ]
    return rng.choice(patterns)


def _sentences(rng: random.Random) -> str:
    return _joined(rng, [_sentence(rng, *two_people(rng)) for _ in range(rng.randint(2, 4))])


def _story(rng: random.Random) -> str:
    """Write several sentences about the same two people."""
    person, other = two_people(rng)
    first = f"{person.name} and {other.name} meet in the {rng.choice(PLACES)}."
    middle = [_sentence(rng, person, other) for _ in range(rng.randint(2, 5))]
    last = rng.choice(["Then they go home.", "They are friends.", f"{other.name} is happy now."])
    return _joined(rng, [first, *middle, last])


def _question(rng: random.Random) -> str:
    """Ask a question that nobody answers."""
    (person, other), thing = two_people(rng), rng.choice(THINGS)
    question = rng.choice(
        [
            f"How many {thing.plural} does {person.name} have now?",
            f"How many {thing.plural} are there in the {rng.choice(PLACES)} altogether?",
            f"How many dollars does {person.name} have left?",
            f"How many {thing.plural} does each friend get in all?",
        ]
    )
    reply = rng.choice(
        [
            f"{other.name} does not know.",
            "Nobody knows.",
            f"{person.name} does not say.",
            f"{other.name} goes to the {rng.choice(PLACES)} to see.",
        ]
    )
    return _joined(rng, [question, reply])


def _facts(rng: random.Random) -> str:
    """Tell facts about several people, and ask for one or two of them or tell them again."""
    people, things = rng.sample(PEOPLE, 3), rng.sample(THINGS, 3)
    count = rng.randint(1, 3)
    facts = [_fact(rng, *pair) for pair in zip(people[:count], things[:count], strict=True)]
    again = rng.sample(facts, rng.randint(1, min(2, count)))
    return _joined(rng, [told for told, _ in facts] + [asked for _, asked in again])


def _fact(rng: random.Random, person: Person, thing: Thing) -> tuple[str, str]:
    """Write a sentence with a number, and another that tells or asks for the same again."""
    a, b = rng.randint(2, 90), rng.randint(2, 9)
    who, what, subject = person.name, thing.plural, person.subject
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


# Each maker has a weight in documents; sums weigh most because they are the hardest to learn.
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
