"""A run as a value: frozen dataclasses read from one YAML file, checked key by key before anything
is allocated.

Every mistake is a `ConfigError` of one line that names the file, the key, what was found and what
was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from data.augment import Augment
from data.parts import find_part


class ConfigError(ValueError):
    """A mistake in a config or its overrides; the message is one line for the person who wrote
    it."""


@dataclass(frozen=True)
class Part:
    """A part chosen by file name, with the options its `build` takes: `{name: arcface, margin:
    0.5}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _part(package: str, default: str | None = None) -> Any:
    if default is None:
        return field(metadata={"package": package})
    return field(default_factory=lambda: Part(default), metadata={"package": package})


@dataclass(frozen=True)
class DataConfig:
    """Where the training faces are and how they are read.

    root: folder that relative paths of `data` and `evaluate` start from; the working directory if
    null. train: record file, folder or other form that `data.faces.open_faces` knows. format:
    `auto` or a file of `data/formats`. size: side of the square input in pixels. threads: decode
    threads; null takes one a core. order: shuffled; block (runs of neighboring images, for spinning
    disks and network drives); balanced (four images of each identity a batch, identities equally
    often). A class pool brings an order of its own.
    """

    train: str
    root: str | None = None
    format: str = "auto"
    size: int = 112
    threads: int | None = None
    order: Literal["shuffled", "block", "balanced"] = "shuffled"
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class OptimConfig:
    """SGD or AdamW over backbone and centers.

    lr: base rate. weight_decay and momentum as torch has them. batch_size: images a rank and
    micro-batch. accumulation: micro-batches an optimizer step. epochs: passes over the data.
    clip_norm: gradient norm limit on the backbone, null for none. no_decay_1d: no weight decay on
    biases, PReLU and batch norm.
    """

    lr: float
    batch_size: int
    epochs: int
    name: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    no_decay_1d: bool = False
    accumulation: int = 1
    clip_norm: float | None = 5.0


@dataclass(frozen=True)
class EvaluateConfig:
    """every_epochs: evaluate after that many epochs (0: only at the end). sets: benchmarks, each a
    mapping with `name`, `protocol` (a file of `eval/benchmarks`, `pairs` unless given), the options
    of that protocol, and `optional` (true: missing files skip the set). published: row of
    `eval/report/published.yaml` whose figures the report prints beside ours."""

    every_epochs: int = 1
    published: str | None = None
    sets: list[dict[str, Any]] = field(
        default_factory=list, metadata={"package": "eval.benchmarks"}
    )


@dataclass(frozen=True)
class RunConfig:
    """output: the run folder. precision: dtype of the backbone's matmuls; fp16 brings a GradScaler.

    log_steps: optimizer steps between lines of metrics.jsonl. checkpoint_steps: steps between
    checkpoints beside those at every epoch's end (0: none). keep: newest checkpoints kept.
    """

    output: str
    seed: int = 0
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    log_steps: int = 20
    checkpoint_steps: int = 0
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, whole."""

    data: DataConfig
    backbone: Part = _part("recognition.backbones")
    head: Part = _part("recognition.heads")
    classifier: Part = _part("recognition.classifiers", "full")
    optim: OptimConfig
    scheduler: Part = _part("recognition.schedulers")
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run: RunConfig


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML) and check every key
    and type.

    Raises ConfigError with file, key, value found, and the nearest right spelling.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*.yaml")], 3, 0.5
        )
        raise ConfigError(f"{path}: no such config file{_hint(near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected sections (data:, optim:, …), found {type(tree).__name__}"
        )
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: Mapping[str, Any], source: str) -> Config:
    """A checked Config from the mapping that a YAML file holds; `source` names it in errors."""
    config = _parse_dataclass(Config, tree, source, "")
    _check_combinations(config, source)
    return config


def to_tree(config: Any) -> Any:
    """The plain mapping of a config, every default written out; `parse_config` of it gives the same
    config."""
    if isinstance(config, Part):
        return {
            "name": config.name,
            **{key: to_tree(value) for key, value in config.options.items()},
        }
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_tree(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_tree(value) for value in config]
    return config


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=120)


def build_part(package: str, part: Part, **context: Any) -> Any:
    """Call `build` of the part's module with its options and what it asks of the run.

    Parameters before the `*` of a `build` are given by the run, those behind it are options.
    Raises TypeError where a `build` asks the run for something that it does not give.
    """
    build = find_part(package, part.name).build
    asked = {
        name
        for name, one in inspect.signature(build).parameters.items()
        if one.kind != one.KEYWORD_ONLY
    }
    if unknown := asked - context.keys():
        raise TypeError(
            f"{package}.{part.name}.build asks the run for {', '.join(sorted(unknown))}, but a run "
            f"gives {', '.join(sorted(context))}; options stand behind the *"
        )
    return build(**part.options, **{key: context[key] for key in asked})


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip("."):
        raise ConfigError(f"override '{override}': expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        if node.get(section) is None:
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict):
            raise ConfigError(f"override '{override}': '{section}' has no keys below it")
    node[last] = value


def _hint(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _nearest(key: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, allowed, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(allowed) or 'none'}"


def _parse_dataclass(cls: type, tree: Any, source: str, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{source}: {where or 'top level'}: expected keys and values, found {tree!r}"
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    dot = where + "." if where else ""
    for key in tree:
        if key not in fields:
            raise ConfigError(
                f"{source}: {dot}{key}: unknown key{_nearest(str(key), list(fields))}"
            )
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        key, package = dot + name, spec.metadata.get("package")
        if name in tree:
            value = tree[name]
        elif package and spec.default_factory is not dataclasses.MISSING:
            # parsed all the same, which writes the part's own defaults out
            value = to_tree(spec.default_factory())
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: {key}: missing, and it has no default")
        else:
            continue
        if package == "eval.benchmarks":
            values[name] = _parse_benchmarks(value, source, key)
        elif package:
            values[name] = _parse_part(package, value, source, key)
        else:
            values[name] = _parse_value(hints[name], value, source, key)
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{source}: {where}: {error}") from None


def _parse_part(package: str, tree: Any, source: str, where: str) -> Part:
    tree = {"name": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str):
        raise ConfigError(f"{source}: {where}: expected {{name: …, options}}, found {tree!r}")
    options = {key: value for key, value in tree.items() if key != "name"}
    return Part(tree["name"], _parse_options(package, tree["name"], options, source, where))


def _parse_options(
    package: str, name: str, tree: Mapping[str, Any], source: str, where: str
) -> dict[str, Any]:
    """Options of a part checked against the signature of its `build`, defaults filled in."""
    try:
        build: Callable[..., Any] = find_part(package, name).build
    except ValueError as error:
        raise ConfigError(f"{source}: {where}: {error}") from None
    hints = typing.get_type_hints(build)
    parameters = {
        k: p for k, p in inspect.signature(build).parameters.items() if p.kind == p.KEYWORD_ONLY
    }
    for key in tree:
        if key not in parameters:
            raise ConfigError(
                f"{source}: {where}.{key}: {name} has no such option{_nearest(str(key), list(parameters))}"
            )
    options: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key in tree:
            options[key] = _parse_value(hints.get(key, Any), tree[key], source, f"{where}.{key}")
        elif parameter.default is not inspect.Parameter.empty:
            options[key] = parameter.default
        else:
            raise ConfigError(f"{source}: {where}.{key}: missing, and {name} has no default for it")
    return options


def _parse_benchmarks(tree: Any, source: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(tree, list) or not all(isinstance(item, Mapping) for item in tree):
        raise ConfigError(
            f"{source}: {where}: expected a list of {{name: …, its sources}}, found {tree!r}"
        )
    sets = []
    for i, item in enumerate(tree):
        protocol = str(item.get("protocol", "pairs"))
        optional = _parse_value(bool, item.get("optional", False), source, f"{where}[{i}].optional")
        options = {key: value for key, value in item.items() if key not in ("protocol", "optional")}
        options = _parse_options("eval.benchmarks", protocol, options, source, f"{where}[{i}]")
        sets.append({"protocol": protocol, "optional": optional, **options})
    return sets


def _parse_value(hint: Any, value: Any, source: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _parse_dataclass(hint, value, source, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for choice in (a for a in arguments if a is not type(None)):
            try:
                return _parse_value(choice, value, source, where)
            except ConfigError as error:
                errors.append(error)
        raise (
            errors[0]
            if len(errors) == 1
            else ConfigError(f"{source}: {where}: expected {hint}, found {value!r}")
        )
    if origin is Literal:
        if value in arguments:
            return value
        near = _nearest(str(value), [str(a) for a in arguments]).replace(
            "known keys", "known values"
        )
        raise ConfigError(f"{source}: {where}: found {value!r}{near}")
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{source}: {where}: expected a list, found {value!r}")
        items = [
            _parse_value(arguments[0] if arguments else Any, v, source, f"{where}[{i}]")
            for i, v in enumerate(value)
        ]
        if (
            origin is tuple
            and arguments
            and arguments[-1] is not Ellipsis
            and len(items) != len(arguments)
        ):
            raise ConfigError(
                f"{source}: {where}: expected {len(arguments)} values, found {len(items)}"
            )
        return tuple(items) if tuple in (origin, hint) else items
    if origin in (dict, Mapping) or inspect.isabstract(origin):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {where}: expected keys and values, found {value!r}")
        return dict(value)
    return _parse_scalar(hint, value, source, where)


def _parse_scalar(hint: Any, value: Any, source: str, where: str) -> Any:
    if hint is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                pass
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint in (bool, str):
        if isinstance(value, hint):
            return value
    else:
        return value
    kind = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}[hint]
    raise ConfigError(f"{source}: {where}: expected {kind}, found {value!r}")


def _check_combinations(config: Config, source: str) -> None:
    """Ranges, and what can't go together."""
    optim, run, data = config.optim, config.run, config.data

    def require(good: bool, key: str, found: Any, expected: str) -> None:
        if not good:
            raise ConfigError(f"{source}: {key}: found {found!r}, expected {expected}")

    require(data.size >= 16, "data.size", data.size, "at least 16 pixels")
    require(
        data.threads is None or data.threads >= 1,
        "data.threads",
        data.threads,
        "at least 1, or null",
    )
    require(optim.lr > 0, "optim.lr", optim.lr, "a positive rate")
    require(
        optim.batch_size >= 2,
        "optim.batch_size",
        optim.batch_size,
        "at least 2, as batch norm needs",
    )
    require(optim.epochs >= 1, "optim.epochs", optim.epochs, "at least 1")
    require(optim.accumulation >= 1, "optim.accumulation", optim.accumulation, "at least 1")
    require(0 <= optim.momentum < 1, "optim.momentum", optim.momentum, "0 ≤ momentum < 1")
    require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "0 or more")
    require(
        optim.clip_norm is None or optim.clip_norm > 0,
        "optim.clip_norm",
        optim.clip_norm,
        "positive, or null",
    )
    require(
        not optim.nesterov or optim.momentum > 0,
        "optim.nesterov",
        True,
        "false where optim.momentum is 0",
    )
    try:
        find_part("recognition.classifiers", config.classifier.name).FACTS.check(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    require(run.log_steps >= 1, "run.log_steps", run.log_steps, "at least 1")
    require(run.keep >= 1, "run.keep", run.keep, "at least 1")
    require(run.checkpoint_steps >= 0, "run.checkpoint_steps", run.checkpoint_steps, "0 or more")
    require(
        config.evaluate.every_epochs >= 0,
        "evaluate.every_epochs",
        config.evaluate.every_epochs,
        "0 or more",
    )
    names = [str(s.get("name", "")) for s in config.evaluate.sets]
    require(all(names), "evaluate.sets", names, "a name for every set")
    require(len(set(names)) == len(names), "evaluate.sets", names, "a different name for every set")
