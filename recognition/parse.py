"""From a YAML file and overrides to a checked `Config`, before anything is opened or allocated.

Every mistake is a `ConfigError` of one line: file, key, what was found and what was expected.
"""

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic_core import to_jsonable_python

from data.options import REQUIRED, Option, PartOf, fit, options_of
from data.parts import find_part, hint
from recognition.config import Config, ConfigError, EvaluationSet, Part


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file with `section.key=value` overrides, every key and value checked.

    The value of a key that holds text is the text as typed; any other value is YAML.
    """
    path = Path(path)
    try:
        tree = _Yaml(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        near = hint(path.name, [other.name for other in path.parent.glob("*.yaml")])
        raise ConfigError(f"{path}: no such config file; {near}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {tree!r}, expected sections (data:, optim:, …)")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: Mapping[str, Any], source: str) -> Config:
    """A checked Config from the mapping that a YAML file holds; `source` names it in errors."""
    try:
        config: Config = _parse_value(Config, tree, "")
        find_part("recognition.classifiers", config.classifier.name).FACTS.check(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def to_tree(config: Any) -> Any:
    """The plain mapping of a config, every default written out; `parse_config` reads it back."""
    return to_jsonable_python(config)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=120)


def build_part(package: str, part: Part, **context: Any) -> Any:
    """Call `build` of the part's module with its options and what it asks of the run.

    Parameters before the `*` of a `build` are given by the run, those behind it are options.
    Raises TypeError where a `build` asks the run for something that it does not give.
    """
    build = find_part(package, part.name).build
    parameters = inspect.signature(build).parameters
    asked = {name for name, one in parameters.items() if one.kind != one.KEYWORD_ONLY}
    if unknown := asked - context.keys():
        raise TypeError(
            f"{package}.{part.name}.build asks the run for {', '.join(sorted(unknown))}, but a run "
            f"gives {', '.join(sorted(context))}; options stand behind the *"
        )
    return build(**part.options, **{key: context[key] for key in asked})


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which a mapping may not hold a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is written twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class _Typed:
    """The value of an override: as typed, and as YAML reads it."""

    text: str
    yaml: Any

    @property
    def readings(self) -> tuple[Any, Any]:
        """Both, the likelier first: YAML cuts `set #2` short, and `007` or `~` is no text to it."""
        textual = isinstance(self.yaml, str) or self.text == "~"
        return (self.text, self.yaml) if textual else (self.yaml, self.text)

    def __repr__(self) -> str:
        return repr(self.readings[0])


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip("."):
        raise ConfigError(f"override '{override}': expected section.key=value")
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        below = _plain(node.get(section))
        below = {"name": below} if isinstance(below, str) else below or {}
        node[section] = node = below
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{section}' has no keys below it")
    try:
        node[last] = _Typed(text, _Yaml(text).get_single_data())
    except (yaml.YAMLError, ValueError) as error:
        if text.startswith(("[", "{")):
            problem = " ".join(str(error).split())
            raise ConfigError(f"override '{override}': not valid YAML: {problem}") from None
        node[last] = _Typed(text, text)


def _plain(value: Any) -> Any:
    return value.readings[0] if isinstance(value, _Typed) else value


def _all_plain(value: Any) -> Any:
    """A value without overrides in it: those of a mapping, such as optim.lr_factors.centers."""
    if isinstance(value, Mapping):
        return {key: _all_plain(below) for key, below in value.items()}
    return _plain(value)


def _parse_value(kind: Any, value: Any, key: str) -> Any:
    """The value of a key as its type, which may be a section, a part or a list of benchmarks."""
    inside = typing.get_args(kind)
    if is_dataclass(kind):
        return parse_section(kind, _plain(value), key)
    if Part in inside:
        return _parse_part(inside[1].package, _plain(value), key)
    if key == "evaluate.sets":
        return _parse_sets(_plain(value), key)
    errors = []
    for reading in value.readings if isinstance(value, _Typed) else (_all_plain(value),):
        try:
            return fit(kind, reading)
        except ValueError as error:
            errors.append(error)
    raise ValueError(f"{key}: {errors[0]}")


def parse_section(kind: Any, tree: Any, key: str) -> Any:
    """The dataclass `kind` from a mapping that was written below `key`; ValueError names keys."""
    values = _parse_options(options_of(kind), tree, key)
    try:
        return kind(**values)
    except ValueError as error:  # a rule of the section, which names the key
        raise ValueError(f"{key}.{error}".lstrip(".")) from None


def _parse_part(package: str, tree: Any, key: str) -> Part:
    tree = {"name": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, Mapping) or tree.get("name") is None:
        raise ValueError(f"{key}: found {tree!r}, expected {{name: …, its options}}")
    name = _parse_value(Annotated[str, PartOf(package)], tree["name"], f"{key}.name")
    written = {option: value for option, value in tree.items() if option != "name"}
    options = options_of(find_part(package, name).build)
    return Part(name, _parse_options(options, written, key, f" of {name}"))


def set_options(protocol: str) -> dict[str, Option]:
    """The keys of a set in `evaluate.sets`: those of its protocol, and those of every set."""
    build = find_part("eval.benchmarks", protocol).build
    return {**options_of(build), **options_of(EvaluationSet)}


def _parse_sets(tree: Any, key: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(tree, (list, tuple)) or not all(isinstance(one, Mapping) for one in tree):
        raise ValueError(f"{key}: found {tree!r}, expected a list of {{name: …, its sources}}")
    option, sets = options_of(EvaluationSet)["protocol"], []
    for place, written in enumerate(tree):
        where = f"{key}[{place}]"
        named = written.get("protocol", option.default)
        protocol = _parse_value(option.hint, named, f"{where}.protocol")
        sets.append(_parse_options(set_options(protocol), written, where, f" of {protocol}"))
    return tuple(sets)


def _parse_options(
    options: Mapping[str, Option], tree: Any, key: str, of: str = ""
) -> dict[str, Any]:
    """The values of all options, defaults filled in."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{key}: found {tree!r}, expected keys and values")
    values = {}
    dot = f"{key}." if key else ""
    for name in tree:
        if name not in options:
            raise ValueError(f"{dot}{name}: unknown key{of}; {hint(str(name), options)}")
    for name, option in options.items():
        if name not in tree and option.default is REQUIRED:
            raise ValueError(f"{dot}{name}: missing, and it has no default")
        value = tree[name] if name in tree else to_tree(option.default)
        values[name] = _parse_value(option.hint, value, dot + name)
    return values
