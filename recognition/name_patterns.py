"""Patterns of parameter names: `layer1.*` is every name that begins with `layer1.`"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from data.parts import hint


def match_names(
    patterns: Iterable[str], names: Sequence[str], key: str, *, also: Sequence[str] = ()
) -> dict[str, list[str]]:
    """The names that each pattern matches, in their order.

    In a pattern `*` stands for any text, `?` for one character and `[ab]` for one of several. key:
    the key of the config that holds the patterns. Raises ValueError for a pattern that matches no
    name, and tells the nearest ones.
    """
    found = {
        pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns
    }
    for pattern, matched in found.items():
        if not matched:
            raise ValueError(
                f"{key}: {pattern!r} matches no parameter; {_nearest(pattern, names, also)}"
            )
    return found


def _nearest(pattern: str, names: Sequence[str], also: Sequence[str]) -> str:
    """`did you mean …?` with names, and with patterns for all names in a module."""
    split = [name.split(".") for name in names]
    modules = [".".join(words[:n]) + ".*" for words in split for n in range(1, len(words))]
    known = list(dict.fromkeys([*also, *modules, *names]))
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    return hint(pattern, near or dict.fromkeys([*also, *(f"{words[0]}*" for words in split)]))
