"""Benchmarks: each file in this folder is one.

A benchmark's module exports

    PROTOCOL: Protocol                          how its figures are reported
    build(*, name, …options) -> Benchmark       checks the options and the files

A benchmark is a function (embed, S) -> Result: it embeds the images, S×S pixels, and computes the
figures. `build` reads no image. It raises FileNotFoundError for a missing file, and ValueError for
options that do not go together. Its paths are `PathText`, and its docstring has a line
`option: text` for each option. A parameter `stored` before the `*`, if there is one, says whether
the embeddings come from a file. Configs (`evaluate.sets`), the command line and the reports need
nothing else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from data.faces import resolve_path
from data.options import PathText
from data.parts import find_part
from eval.embed import Embed
from eval.report.result import Result

PACKAGE = __name__
Benchmark = Callable[[Embed, int], Result]


def open_benchmark(
    item: Mapping[str, Any], root: str | None = None, *, stored: bool = False
) -> Benchmark:
    """The benchmark of one entry of `evaluate.sets`.

    item: `protocol` (a file of this folder), the options of its `build`, and perhaps `optional`.
    root: where relative paths start. stored: whether the embeddings come from a file. If files are
    missing, it raises FileNotFoundError, or with `optional` returns a benchmark without figures.
    """
    options = dict(item)
    optional = options.pop("optional", False)
    module = find_part(PACKAGE, options.pop("protocol"))
    hints = get_type_hints(module.build, include_extras=True)
    for key, hint in hints.items():
        if options.get(key) and PathText in (hint, *get_args(hint)):
            options[key] = resolve_path(options[key], root)
    if "stored" in hints:
        options["stored"] = stored
    try:
        benchmark: Benchmark = module.build(**options)
    except FileNotFoundError as error:
        if not optional:
            hint = "in a config, `optional: true` skips a set with missing files"
            raise FileNotFoundError(f"{error} ({hint})") from None
        name = item.get("name") or item["protocol"]
        skipped = Result(name, module.PROTOCOL, {}, skipped=str(error))
        return lambda embed, size: skipped
    return benchmark


def existing_folder(path: str | Path) -> Path:
    """The path of a folder, or FileNotFoundError if it does not exist."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return Path(path)
