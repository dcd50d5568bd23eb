"""What every key of a config means, for `train.py --help`, `--explain` and the generated docs."""

import inspect
import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any

from data.options import REQUIRED, Option, PartOf, describe, options_of
from data.parts import find_part, hint, part_names
from recognition.config import Config, ConfigError, Part
from recognition.parse import set_options, to_tree


@dataclass(frozen=True)
class Key:
    """A key as a config or an override writes it, with the part that has it ("" for a section)."""

    name: str
    part: str
    option: Option

    def __str__(self) -> str:
        part = f" ({self.part})" if self.part else ""
        default = self.default if self.default == "required" else f"default {self.default}"
        return f"{self.name}{part}: {describe(self.option.hint)}; {default}"

    @property
    def default(self) -> str:
        """The default as YAML would have it, or `required`."""
        if self.option.default is REQUIRED:
            return "required"
        return json.dumps(to_tree(self.option.default), ensure_ascii=False)


@dataclass(frozen=True)
class PartKeys:
    """The keys of a part, with the first paragraph of its file."""

    part: str
    summary: str
    keys: list[Key]


def keys_of(owner: Any, prefix: str = "", part: str = "") -> Iterator[Key]:
    """The keys of a section or a `build`; a section comes before the keys in it."""
    for key in _keys(options_of(owner), prefix, part):
        yield key
        if is_dataclass(key.option.hint):
            yield from keys_of(key.option.hint, f"{key.name}.")


def _keys(options: Mapping[str, Option], prefix: str, part: str) -> list[Key]:
    return [Key(prefix + name, part, option) for name, option in options.items()]


def parts_of(key: Key) -> Iterator[PartKeys]:
    """The parts that a key chooses from; none for a key that holds a value."""
    kind, *rules = typing.get_args(key.option.hint) or [None]
    packages = [rule.package for rule in rules if isinstance(rule, PartOf) and kind is not str]
    prefix = f"{key.name}." if kind is Part else f"{key.name}[]."
    for package in packages:
        for name in part_names(package):
            module = find_part(package, name)
            summary = (inspect.getdoc(module) or "").split("\n\n")[0]
            options = options_of(module.build) if kind is Part else set_options(name)
            yield PartKeys(name, summary, _keys(options, prefix, name))


def listing() -> str:
    """All sections and keys, those of every part too, each with type, default and one sentence."""
    lines = []
    for key in _all_keys():
        sentence = key.option.text.split(". ")[0].rstrip(".")
        if is_dataclass(key.option.hint):
            lines += ["", f"{key.name}: {sentence}"]
        elif "." not in key.name:
            lines += ["", f"{key}", f"  {sentence}"]
        else:
            lines += [f"  {key}", f"    {sentence}"]
    return "\n".join(lines)


def _all_keys() -> Iterator[Key]:
    for key in keys_of(Config):
        yield key
        yield from chain(*(part.keys for part in parts_of(key)))


def explain(asked: str, config: Config | None = None) -> str:
    """A key, or all keys of a section or of its parts: type, default and full text of each.

    config: leave out the parts that it does not choose. ConfigError names the nearest keys where no
    section and no part has the key.
    """
    keys = list(_all_keys())
    if config is not None:
        keys = [key for key in keys if _chosen(key, config)]
    found = [key for key in keys if f"{key.name}.".startswith((f"{asked}.", f"{asked}[]."))]
    if not found:
        near = hint(asked, dict.fromkeys(key.name for key in keys))
        raise ConfigError(f"--explain {asked}: no such key; {near}")
    return "\n".join(f"{key}\n{_indented(key.option.text)}" for key in found)


def _chosen(key: Key, config: Config) -> bool:
    section = getattr(config, key.name.split(".")[0])
    return not isinstance(section, Part) or key.part in ("", section.name)


def _indented(text: str) -> str:
    return textwrap.fill(text, 96, initial_indent="    ", subsequent_indent="    ")
