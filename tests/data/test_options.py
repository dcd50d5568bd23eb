"""What a type admits, how it is described, and where the texts of options come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from data.options import (
    REQUIRED,
    Ascending,
    Count,
    Option,
    PartOf,
    PathText,
    Positive,
    Range,
    Share,
    ShareBelowOne,
    describe,
    fit,
    options_of,
)

Chunk = Count | Literal["auto"]
Places = Annotated[Sequence[Share], Ascending()]


@pytest.mark.parametrize(
    ("hint", "words", "admitted", "refused"),
    [
        (float, "a number", [1, -2.5, "1e-3"], ["fast", "", None, True, [1], 10**400, "nan"]),
        (int, "a whole number", [0, -3], [1.0, "1", True, None]),
        (bool, "true or false", [True, False], [0, 1, "yes", None]),
        (str, "text", ["", "a"], [1, None, ["a"]]),
        (PathText, "a path", ["a"], ["", 1, None]),
        (Positive, "a number more than 0", [1e-9], [0, -1, float("inf")]),
        (ShareBelowOne, "a number at least 0 and less than 1", [0, 0.99], [1, -0.1]),
        (Annotated[int, Range(at_most=3)], "a whole number at most 3", [3, -9], [4, 2.0]),
        (Positive | None, "a number more than 0 or null", [None, 1], [0, ""]),
        (Chunk, "a whole number at least 1 or auto", [1, "auto"], [0, "atuo", True]),
        (Literal[18, 34, 50], "18, 34 or 50", [18], [19, "18", 18.0]),
        (Literal[1, "a"], "1 or a", [1, "a"], [True, "b"]),
        (Places, "a list (each a number at least 0 and at most 1) in ascending order",
         [[], [0, 0.5, 0.5]], [[0.5, 0.1], [2], 0.5, "0.5", [None]]),
        (Mapping[str, Positive], "keys and values (each a number more than 0)",
         [{}, {"a": 1, "b.*": 0.5}], [{"a": 0}, {"a": True}, {1: 1}, ["a"], "a", None]),
        (Any, "anything", [1, None, "a"], []),
    ],
)  # fmt: skip
def test_a_type_admits_and_refuses(
    hint: Any, words: str, admitted: list[Any], refused: list[Any]
) -> None:
    assert describe(hint) == words
    for value in admitted:
        fitted = fit(hint, value)
        expected = tuple(value) if isinstance(value, list) else value
        assert fitted == (float(value) if value == "1e-3" else expected)
    for value in refused:
        with pytest.raises(ValueError, match="^found .*(, expected |did you mean|there are)"):
            fit(hint, value)


def test_numbers_have_the_type_that_was_asked_for() -> None:
    assert isinstance(fit(float, 1), float)
    assert isinstance(fit(int | float, 1), int)


def test_names_of_parts_are_files_and_what_else_is_admitted() -> None:
    hint = Annotated[str, PartOf("data.formats", others=("auto",))]
    assert fit(hint, "auto") == "auto"
    assert fit(hint, "folder") == "folder"
    with pytest.raises(ValueError, match="found 'foldr'; did you mean folder?"):
        fit(hint, "foldr")
    with pytest.raises(ValueError, match="there are: auto, "):
        fit(hint, "xyz")


def test_options_of_a_build_stand_behind_the_star() -> None:
    def build(size: int, *, scale: Positive = 64.0, name: str) -> None:
        """A part.

        scale: what is
            multiplied.
        size: given by the run.
        """

    assert options_of(build) == {
        "scale": Option(Positive, 64.0, "what is multiplied."),
        "name": Option(str, REQUIRED, ""),
    }


@dataclass(frozen=True)
class Section:
    """A section."""

    lr: Positive
    """Base
    rate."""
    epochs: Count = 3
    bare: int = 0
    """The last."""


def test_options_of_a_dataclass_are_its_fields() -> None:
    assert options_of(Section) == {
        "lr": Option(Positive, REQUIRED, "Base rate."),
        "epochs": Option(Count, 3, ""),
        "bare": Option(int, 0, "The last."),
    }
