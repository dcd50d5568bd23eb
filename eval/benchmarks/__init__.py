"""Benchmarks: each file in this folder is one.

A benchmark's module exports

    PROTOCOL: Protocol                    how its figures are reported
    build(*, name, …options) -> Benchmark

`build` reads no image. It raises FileNotFoundError for a missing file, ValueError for options that
do not go together. Its paths are `PathText`, and its docstring has a line `option: text` for each
option. A parameter `stored` before the `*`, if there is one, says that the embeddings come from a
file. Configs (`evaluate.sets`), the command line and the reports need nothing else.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.faces import below_root
from data.options import PathText
from data.parts import find_part
from eval.embed import Embed
from eval.report.result import Protocol, Result

PACKAGE = __name__


class Benchmark(typing.Protocol):
    """What `build` returns."""

    def run(self, embed: Embed, size: int) -> Result:
        """Embed the images, S×S pixels, and compute the figures."""
        ...


@dataclass(frozen=True)
class SkippedBenchmark:
    """An optional benchmark whose files are missing."""

    name: str
    protocol: Protocol
    reason: str

    def run(self, embed: Embed, size: int) -> Result:
        return Result(self.name, self.protocol, {}, skipped=self.reason)


def build_benchmark(
    protocol: str, options: Mapping[str, Any], *, root: str | None = None, stored: bool = False
) -> Benchmark:
    """The benchmark of the file `protocol` of this folder; relative paths start at `root`."""
    build = find_part(PACKAGE, protocol).build
    hints = typing.get_type_hints(build, include_extras=True)
    paths = [key for key, hint in hints.items() if PathText in (hint, *typing.get_args(hint))]
    below = {key: below_root(options[key], root) for key in paths if options.get(key)}
    given = {"stored": stored} if "stored" in hints else {}
    benchmark: Benchmark = build(**{**options, **below, **given})
    return benchmark


def open_benchmark(item: Mapping[str, Any], root: str | None) -> Benchmark:
    """The benchmark of one entry of `evaluate.sets`.

    item: `protocol`, perhaps `optional`, and the options of the protocol's `build`. root: where
    relative paths start. Missing files are a FileNotFoundError, or with `optional` a result without
    figures that names them.
    """
    item = dict(item)
    protocol, optional, name = item.pop("protocol"), item.pop("optional", False), item["name"]
    try:
        return build_benchmark(protocol, item, root=root)
    except FileNotFoundError as error:
        if optional:
            return SkippedBenchmark(name, find_part(PACKAGE, protocol).PROTOCOL, str(error))
        raise FileNotFoundError(
            f"{name}: {error}; correct the path or mark the set `optional: true`"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def existing_folder(path: str | Path) -> Path:
    """The path of a folder; FileNotFoundError where there is none."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return Path(path)
