"""What an option may hold: types with ranges, and what they say in errors, in help and in docs.

`scale: Positive = 64.0` in a dataclass or in a `build` says that 0 is refused, and why. The fields
of a dataclass and the parameters behind the `*` of a `build` are options alike.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from data.parts import hint as nearest
from data.parts import option_texts, part_names

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number; None means no bound. `above` and `below` exclude the bound itself."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number lies within all bounds; NaN and infinities never do."""
        return (
            abs(number) < float("inf")
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        bounds = (
            ("at least", self.at_least),
            ("more than", self.above),
            ("at most", self.at_most),
            ("less than", self.below),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class PartOf:
    """The name of a part, that is of a file in the folder `package`, or one of `others`."""

    package: str
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names that are admitted."""
        return [*self.others, *part_names(self.package)]

    def holds(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in self.names


@dataclass(frozen=True)
class Ascending:
    """The order of a list of numbers; equal neighbors are in order."""

    def holds(self, numbers: Sequence[float]) -> bool:
        """Whether no number is smaller than the one before it."""
        return all(earlier <= later for earlier, later in pairwise(numbers))

    def __str__(self) -> str:
        return "in ascending order"


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
"""A probability or a part of a whole, 0 to 1."""
ShareBelowOne = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
PathText = Annotated[str, "path"]
"""A path as a config writes it: `~` is the home folder, a relative one starts at `data.root`."""


@dataclass(frozen=True)
class Option:
    """One option: its type with ranges, its default (REQUIRED for none), and what it means."""

    hint: Any
    default: Any
    text: str


def options_of(owner: Any) -> dict[str, Option]:
    """The options by name of a dataclass (its fields) or a `build` (what stands behind its `*`)."""
    hints = typing.get_type_hints(owner, include_extras=True)
    texts = _field_texts(owner) if isinstance(owner, type) else option_texts(owner)
    return {
        name: Option(hints.get(name, Any), one.default, texts.get(name, ""))
        for name, one in inspect.signature(owner).parameters.items()
        if isinstance(owner, type) or one.kind == one.KEYWORD_ONLY
    }


def fit(hint: Any, value: Any) -> Any:
    """`value` as the type `hint` holds it: fit(Positive, 3) -> 3.0. ValueError where it can't."""
    kind, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Annotated:
        with suppress(ValueError):
            fitted = fit(inside[0], value)
            if "path" in inside and fitted:
                return _with_home(fitted)
            if all(rule != "path" and rule.holds(fitted) for rule in inside[1:]):
                return fitted
    elif kind in (typing.Union, types.UnionType):
        for choice in inside:
            with suppress(ValueError):
                return fit(choice, value)
    elif kind is Literal:
        if any(value == choice and type(value) is type(choice) for choice in inside):
            return value
    elif kind in (Sequence, tuple):
        if isinstance(value, (list, tuple)):
            return tuple(fit(inside[0], item) for item in value)
    elif kind is float:
        with suppress(ValueError, TypeError, OverflowError):
            number = float(value)  # of text too: YAML 1.1 reads 1e-3 as text
            if math.isfinite(number) and not isinstance(value, bool):
                return number
    elif kind is Any or type(value) is kind:
        return value
    known = [choice for choice in choices_of(hint) if isinstance(choice, str)]
    if known and isinstance(value, str):
        raise ValueError(f"found {value!r}; {nearest(value, known)}")
    raise ValueError(f"found {value!r}, expected {describe(hint)}")


def describe(hint: Any) -> str:
    """The type in words: describe(Positive | None) -> "a number more than 0 or null"."""
    kind, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Annotated and "path" in inside:
        return "a path"
    if choices := choices_of(hint):
        return _either([str(choice) for choice in choices])
    if kind is Annotated:
        return " ".join([describe(inside[0]), *map(str, inside[1:])])
    if kind in (typing.Union, types.UnionType):
        return _either([describe(choice) for choice in inside])
    if kind in (Sequence, tuple):
        return f"a list (each {describe(inside[0])})"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return {**words, type(None): "null"}.get(kind, "anything" if kind is Any else "keys and values")


def choices_of(hint: Any) -> list[Any]:
    """The values that a Literal or the name of a part admits; none for any other type."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return list(inside)
    return [name for rule in inside if isinstance(rule, PartOf) for name in rule.names]


def _either(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _with_home(path: str) -> str:
    """`~` at the start of a path, and of each in `concat:PATH;PATH`, as the home folder."""
    return re.sub(r"(?<![^:;])~(?=/|$)", lambda _: str(Path.home()), path)


def _field_texts(owner: type) -> Mapping[str, str]:
    """What the string under each field of a dataclass says."""
    texts = {}
    for two in pairwise(ast.walk(ast.parse(inspect.getsource(owner)))):
        match two:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                texts[name] = " ".join(text.split())
    return texts
