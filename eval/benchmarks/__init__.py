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
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

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
        skipped = without_figures({**item, "name": name}, str(error))
        return lambda embed, size: skipped
    return benchmark


class _Opened(Exception):
    """The first images of a set have arrived."""


def try_opening(benchmark: Benchmark, size: int) -> None:
    """Open a set up to its first images, so that broken files are known before a training run.

    Raises what the benchmark raises: OSError or ValueError.
    """

    def stop(images: torch.Tensor) -> torch.Tensor:
        raise _Opened

    with suppress(_Opened):
        benchmark(stop, size)


def without_figures(item: Mapping[str, Any], reason: str) -> Result:
    """The result of an entry of `evaluate.sets` that could not be evaluated."""
    module = find_part(PACKAGE, item["protocol"])
    return Result(item["name"], module.PROTOCOL, {}, skipped=reason)


def existing_folder(path: str | Path) -> Path:
    """The path of a folder, or FileNotFoundError if it does not exist."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return Path(path)
