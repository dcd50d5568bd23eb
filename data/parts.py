"""Finding a part by its file name: the folder of parts is the registry.

`heads/arcface.py` is the head `arcface`. Files whose names begin with an underscore are helpers,
not parts.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


def part_names(package: str) -> list[str]:
    """Names of all parts in a package: part_names("recognition.heads") -> ["adaface", ...]."""
    paths = importlib.import_module(package).__path__
    return sorted(
        module.name for module in pkgutil.iter_modules(paths) if not module.name.startswith("_")
    )


def find_part(package: str, name: str) -> ModuleType:
    """The module `package.name`, or a ValueError that names the nearest parts that exist."""
    names = part_names(package)
    if name not in names:
        kind = package.rpartition(".")[2]
        raise ValueError(f"there is no {name!r} in {kind}; {hint(name, names)}")
    return importlib.import_module(f"{package}.{name}")


def hint(name: str, names: Iterable[str]) -> str:
    """`did you mean X?` with the nearest of `names`, or all of them where none is near."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"


def option_texts(build: Callable[..., Any]) -> dict[str, str]:
    """The text of each parameter of a `build`, from the `name: text` lines of its docstring.

    Such a line starts at the docstring's own indent; lines that are indented further continue it.
    """
    parameters = inspect.signature(build).parameters
    lines = re.findall(r"^(\w+): (.*(?:\n +.*)*)", inspect.getdoc(build) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines if name in parameters}
