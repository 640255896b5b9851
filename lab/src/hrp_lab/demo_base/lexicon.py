"""Lists the words that the demo's two text makers share.

Word problems and pre-training text draw on the same people, things and places, so that fine-tuning
on word problems teaches the base model a new task and not a new vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """Holds a name with the pronouns that agree with it."""

    name: str
    subject: str
    object: str
    possessive: str


@dataclass(frozen=True)
class Thing:
    """Names a countable thing, and what one keeps several of it in."""

    singular: str
    container: str

    @property
    def plural(self) -> str:
        """Return the plural of the thing."""
        return f"{self.singular}s"

    @property
    def containers(self) -> str:
        """Return the plural of the container."""
        return f"{self.container}es" if self.container.endswith("x") else f"{self.container}s"


def _people(names: str, pronouns: str) -> list[Person]:
    return [Person(name, *pronouns.split()) for name in names.split()]


PEOPLE = [
    *_people("Anna Clara Emma Grace Julia Lily Maria Nora Ruth Sara Tina Wendy", "she her her"),
    *_people("Adam Ben David Eric Frank Henry Jack Leo Max Oscar Paul Tom", "he him his"),
]

_THINGS = """
apple basket, pear basket, lemon bag, orange bag, plum bowl, egg tray, cake tray, cookie jar,
candle box, pencil box, pen cup, book crate, card pack, stamp album, coin jar, marble bag,
button tin, shell bucket, stone bucket, flower vase, rose vase, ticket pack, sticker sheet, toy box
"""
THINGS = [Thing(*pair.split()) for pair in _THINGS.split(",")]

PLACES = ["park", "school", "market", "garden", "kitchen", "library", "forest", "village"]
PLACES += ["town", "shop", "yard", "house"]

COLORS = ["red", "blue", "green", "yellow", "white", "black", "small", "big", "old", "new"]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def two_people(rng: random.Random) -> tuple[Person, Person]:
    """Return two different people."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second


def plural_of(count: int, thing: Thing) -> str:
    """Return ``"1 apple"`` or ``"3 apples"``."""
    return f"{count} {thing.singular if count == 1 else thing.plural}"
