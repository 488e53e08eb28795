"""What an exercise is: data. The judge reads it, and so do the teacher's commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Call = Callable[..., Any]


@dataclass(frozen=True)
class Property:
    """Something that is true of every right answer.

    Attributes
    ----------
    name : str
    cases : hypothesis strategy of tuples
        What the function is called with.
    points : int
    law : callable, optional
        ``law(call, *case)`` calls the answer by ``call(...)`` and raises `Wrong` if it broke a law. Without one the
        answer must be the reference's.
    gate : bool
        Whether all points are lost with this property.
    """

    name: str
    cases: Any
    points: int = 1
    law: Callable[..., None] | None = None
    gate: bool = False


@dataclass(frozen=True)
class Chaff:
    """A wrong answer as people really give it.

    Attributes
    ----------
    name : str
        The mistake, in a few words: "alpha without rank".
    function : callable
    caught_by : str
        The name of a property that it breaks.
    hint : str
    source : str
        Where people made it.
    slow : bool
        Whether slowness is all that is wrong with it: it is not called to name a mistake.
    """

    name: str
    function: Call
    caught_by: str
    hint: str
    source: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Variant:
    """The same exercise with another answer, so that published ones do not pass.

    Attributes
    ----------
    said : str
        What is asked for instead, in a sentence that stands below the exercise's text.
    reference, wheat : callable
        Two right answers.
    size : callable, optional
        As an exercise has it.
    """

    said: str
    reference: Call
    wheat: Call
    size: Call | None = None


@dataclass(frozen=True)
class Exercise:
    """A function to write, what is true of it, right answers and wrong ones.

    Attributes
    ----------
    id : str
        The lesson's number, a dash and a word.
    minutes, importance : int
        As the lesson says; importance is 1 to 5.
    reference : callable
        The right answer in plain loops. Its name and its parameters are those that the answer must have.
    properties : tuple of Property
    wheats : tuple of callable
        Right answers, written differently.
    chaffs : tuple of Chaff
    hints : tuple of str
        From the lightest on.
    read : str
        Where the engine does this: a dotted name, or "".
    size : callable, optional
        The magnitudes that the rounding of an answer is measured by, with the reference's parameters and of its
        result's shape; otherwise the largest magnitude of each array.
    budget : float
        How many units of rounding, eps times the size, an answer may differ.
    emptied : tuple of str
        The dotted names in the engine that would be the answer: they raise while this is graded.
    variants : tuple of Variant
    said : str
        What a variant asks for instead.
    like : callable, optional
        Whose name and parameters a variant has.
    lacking : callable, optional
        What this machine lacks to judge it, in a sentence, or "".
    """

    id: str
    minutes: int
    importance: int
    reference: Call
    properties: tuple[Property, ...]
    wheats: tuple[Call, ...]
    chaffs: tuple[Chaff, ...]
    hints: tuple[str, ...] = ()
    read: str = ""
    size: Call | None = None
    budget: float = 8.0
    emptied: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    said: str = ""
    like: Call | None = None
    lacking: Callable[[], str] = lambda: ""

    def varied(self, number: int) -> Exercise:
        """The exercise as this variant asks for it, its properties the same; 0, and one without variants, as it is."""
        if not number or not self.variants:
            return self
        chosen = self.variants[(number - 1) % len(self.variants)]
        as_it_was = Chaff(
            "as in the lesson",
            self.reference,
            self.properties[0].name,
            "This homework asks for something else than the lesson: read the last sentence of the exercise again.",
        )
        return replace(
            self,
            reference=chosen.reference,
            wheats=(chosen.reference, chosen.wheat),
            chaffs=(as_it_was,),
            hints=(),
            size=chosen.size or self.size,
            said=chosen.said,
            like=self.reference,
            variants=(),
        )

    @property
    def function(self) -> str:
        """What the answer is called."""
        return (self.like or self.reference).__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.like or self.reference).parameters)

    @property
    def points(self) -> int:
        return sum(p.points for p in self.properties)


class Wrong(Exception):
    """An answer breaks a property: what is told, and the two sides where there are two.

    Parameters
    ----------
    said : str
    expected, got : object, optional
    """

    def __init__(self, said: str, expected: Any = None, got: Any = None):
        super().__init__(said)
        self.said, self.expected, self.got = said, expected, got


def demand(true: Any, said: str) -> None:
    """Raise `Wrong` unless it is true."""
    if not true:
        raise Wrong(said)


class Seed(int):
    """Stands in a case for a NumPy generator with this seed, so that every call gets a fresh one."""
