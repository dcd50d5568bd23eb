"""What an option may hold: types with ranges, and what they say in errors, in help and in docs.

`scale: Positive = 64.0` in a dataclass or in a `build` says that 0 is refused, and why. The fields
of a dataclass and the parameters behind the `*` of a `build` are options alike.
"""

import ast
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen, Predicate
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import core_schema

from data.parts import hint as nearest
from data.parts import option_texts, part_names

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""


def Range(
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Interval:
    """Bounds of a number; None means no bound. `above` and `below` exclude the bound itself."""
    return Interval(ge=at_least, le=at_most, gt=above, lt=below)


@dataclass(frozen=True)
class PartOf:
    """The name of a part, that is of a file in the folder `package`, or one of `others`."""

    package: str
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names that are admitted."""
        return [*self.others, *part_names(self.package)]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(self.names)


def Ascending() -> Predicate:
    """The order of a list of numbers; equal neighbors are in order."""
    return Predicate(_in_ascending_order)


def _in_ascending_order(numbers: Sequence[float]) -> bool:
    return all(earlier <= later for earlier, later in pairwise(numbers))


def _with_home(path: str) -> str:
    """`~` at the start of a path, and of each in `concat:PATH;PATH`, as the home folder."""
    return re.sub(r"(?<![^:;])~(?=/|$)", lambda _: str(Path.home()), path)


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
"""A probability or a part of a whole, 0 to 1."""
ShareBelowOne = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
PathText = Annotated[str, MinLen(1), AfterValidator(_with_home)]
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
    with suppress(ValidationError):
        fitted = adapter(hint).validate_python(value)
        if _exact(value, fitted):
            return tuple(fitted) if isinstance(fitted, list) else fitted  # configs are frozen
    known = [choice for choice in choices_of(hint) if isinstance(choice, str)]
    if known and isinstance(value, str):
        raise ValueError(f"found {value!r}; {nearest(value, known)}")
    raise ValueError(f"found {value!r}, expected {describe(hint)}")


def adapter(hint: Any) -> TypeAdapter[Any]:
    """pydantic's validator of a type, which also gives its JSON schema. No number is infinite."""
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _exact(value: Any, fitted: Any) -> bool:
    """Whether pydantic kept the type of the value. A float may come from text or a whole number.

    pydantic also admits 1.0 and "1" as 1, and 1 as true. Its strict mode does not, but that refuses
    text for a float, and to YAML 1.1 `1e-3` is text.
    """
    if isinstance(fitted, (list, tuple)):
        return all(map(_exact, value, fitted))
    if isinstance(fitted, dict):
        texts = {str(key): one for key, one in value.items()}  # JSON writes all keys as text
        return all(str(key) in texts and _exact(texts[str(key)], fitted[key]) for key in fitted)
    return type(value) is type(fitted) or (type(fitted) is float and type(value) is not bool)


def describe(hint: Any) -> str:
    """The type in words: describe(Positive | None) -> "a number more than 0 or null"."""
    kind, inside = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint == PathText:
        return "a path"
    if choices := choices_of(hint):
        return _either([str(choice) for choice in choices])
    if kind is Annotated:
        return " ".join([describe(inside[0]), *map(_rule_in_words, inside[1:])])
    if kind in (typing.Union, types.UnionType):
        return _either([describe(choice) for choice in inside])
    if kind in (Sequence, tuple):
        return f"a list (each {describe(inside[0])})"
    if kind is Mapping and Any not in inside:
        return f"keys and values (each {describe(inside[1])})"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return {**words, type(None): "null"}.get(kind, "anything" if kind is Any else "keys and values")


def choices_of(hint: Any) -> list[Any]:
    """The values that a Literal or the name of a part admits; none for any other type."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return list(inside)
    return [name for rule in inside if isinstance(rule, PartOf) for name in rule.names]


def _rule_in_words(rule: Interval | Predicate) -> str:
    """The bounds of a number, or the name of the function that checks a list."""
    if isinstance(rule, Predicate):
        return rule.func.__name__.strip("_").replace("_", " ")
    bounds = (
        ("at least", rule.ge),
        ("more than", rule.gt),
        ("at most", rule.le),
        ("less than", rule.lt),
    )
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def _either(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _field_texts(owner: type) -> Mapping[str, str]:
    """What the string under each field of a dataclass says."""
    texts = {}
    for two in pairwise(ast.walk(ast.parse(inspect.getsource(owner)))):
        match two:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                texts[name] = " ".join(text.split())
    return texts
