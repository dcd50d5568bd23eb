"""Plans memory and time of a training run, and finds settings that fit if it needs too much.

    python -m tools.plan --config configs/NAME.yaml [section.key=value …] [--classes N]
        [--device-memory 24GB] [--ranks K] [--json]
    python -m tools.plan --config configs/NAME.yaml --time --card "RTX 4090" [--images N]

The command itself needs little memory: it traces the backbone's forward pass on tensors without
storage, and asks the classifier what it needs. Figures are for one rank (process). The peak is the
larger of two moments: the start of the backward pass, when all activations exist, and the optimizer
step, when all gradients do. Times come from a card's data sheet, and are no measurements.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch

from data.options import Count, Range
from data.parts import part_names
from recognition.classifiers import Overrides
from recognition.config import Config, ConfigError
from recognition.parse import load_config
from tools import _time
from tools._cards import CARDS, Card, card_of, find_card
from tools._cli import command
from tools._need import CLASSIFIERS, estimate, facts_of, process_bytes, sizes_of

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
SMALLEST_BATCH = 8  # batches are not halved below
Utilization = Annotated[float, Range(above=0, at_most=1)]


def alternatives(
    path: str, overrides: Sequence[str], config: Config
) -> Iterator[tuple[Overrides, Config]]:
    """Further overrides that need less memory, and the configs that they make.

    Those that cost only time come first, those that change the training last. Overrides that make
    an invalid config are left out.
    """
    for tried in _proposals(config):
        try:
            yield tried, load_config(path, [*overrides, *tried])
        except ConfigError:
            continue


def _proposals(config: Config) -> Iterator[Overrides]:
    yield from facts_of(config.classifier.name).lighter(config)
    if config.backbone.options.get("checkpoint") is False:
        yield ["backbone.checkpoint=true"]
    if config.run.precision == "fp32":
        yield ["run.precision=bf16"]
    batch_size, accumulation = config.optim.batch_size, config.optim.accumulation
    while batch_size % 2 == 0 and batch_size >= 2 * SMALLEST_BATCH:
        batch_size, accumulation = batch_size // 2, accumulation * 2
        yield [f"optim.batch_size={batch_size}", f"optim.accumulation={accumulation}"]
    for name in part_names(CLASSIFIERS):
        yield from facts_of(name).instead(config)


def plan(
    path: str, overrides: Sequence[str], classes: int | None, limit: int | None, ranks: int
) -> dict[str, Any]:
    """The estimate of a config and, if it exceeds `limit`, of the settings that fit in it."""
    config = load_config(path, overrides)
    count = classes if classes is not None else data_of(config, path)[0]
    base = process_bytes(config)
    try:
        need = estimate(config, count, ranks, base)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    result: dict[str, Any] = {
        "classes": count,
        "ranks": ranks,
        "bytes": need,
        "limit": limit,
        "fitting": [],
    }
    if limit is None or need["peak"] <= limit:
        return result
    for tried, other in alternatives(path, overrides, config):
        try:
            peak = estimate(other, count, ranks, base)["peak"]
        except ValueError:  # sizes that a run refuses, such as a pool smaller than the batch
            continue
        if peak <= limit:
            result["fitting"].append({"overrides": tried, "peak": peak})
    return result


def out_of_memory(path: str, overrides: Sequence[str], ranks: int) -> str:
    """One line for a run that had too little memory on its device: what would fit.

    The device's memory is the limit, or less where the run should have fitted into it: others may
    use the device too, or the plan be wrong.
    """
    need = plan(path, overrides, None, None, ranks)["bytes"]["peak"]
    limit = int(0.9 * need)
    where = "the device"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        limit = min(limit, properties.total_memory)
        where = f"{properties.name} with {properties.total_memory / 1e9:.1f} GB"
    fitting = plan(path, overrides, None, limit, ranks)["fitting"]
    tried = "; or ".join(
        f"{_in_shell(fit['overrides'])} ({fit['peak'] / 1e9:.1f} GB)" for fit in fitting[:3]
    )
    return (
        f"{path}: out of memory on {where}: the plan of this run is {need / 1e9:.1f} GB per "
        f"process; add {tried or 'settings that need less'}, as python -m tools.plan finds them"
    )


def _in_shell(overrides: Overrides) -> str:
    return " ".join(repr(word) if " " in word else word for word in overrides)


def plan_time(
    path: str,
    overrides: Sequence[str],
    card: Card,
    *,
    classes: int | None,
    images: int | None,
    ranks: int,
    utilization: float | None,
) -> dict[str, Any]:
    """Expected seconds of an optimizer step, and hours of an epoch and of the run.

    Hours are None where the number of images is not known.
    """
    config = load_config(path, overrides)
    if classes is None:
        classes, counted = data_of(config, path)
        images = images or counted
    facts = facts_of(config.classifier.name)
    try:
        load = _time.load(config, facts, sizes_of(config, classes, ranks))
        seconds = _time.seconds(load, card, utilization)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    kinds = {card.supported(kind) for kind in (load.backbone_kind, load.classifier_kind)}
    result: dict[str, Any] = {
        "card": card.name,
        "ranks": ranks,
        "utilization": {
            kind: utilization or _time.share_of_peak(card, kind) for kind in sorted(kinds)
        },
        "seconds": seconds,
        "images_per_second": load.images / seconds["step"],
        "hours_per_epoch": None,
        "hours": None,
    }
    if images is not None:
        steps = facts.images_per_epoch(images) // load.images
        result["hours_per_epoch"] = steps * seconds["step"] / 3600
        result["hours"] = config.optim.epochs * result["hours_per_epoch"]
    return result


def data_of(config: Config, path: str) -> tuple[int, int]:
    """Identities and images of the config's training set. ConfigError where it can't be opened."""
    from recognition.training_set import open_training_set

    try:
        faces = open_training_set(config.data)
        return faces.num_classes, len(faces)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: data.train: {error}; give the number of identities with --classes"
        ) from None


def this_card() -> Card:
    """The GPU of this machine. ValueError where it has none, or one that is not in the table."""
    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    card = card_of(found)
    if card is None:
        names = ", ".join(card.name for card in CARDS)
        raise ValueError(f"--time: this machine has {found}; give a --card of {names}")
    return card


def memory(text: str) -> int:
    """Bytes of `24GB`, `512M`, `8000000000`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"--device-memory {text}: expected a size such as 24GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def show(result: dict[str, Any]) -> None:
    """Print the estimate as a table."""
    need = result["bytes"]
    print(f"{result['classes']} identities, {result['ranks']} rank(s); bytes per rank")
    for name, count in need.items():
        print(f"  {name:<26}{count / 1e9:10.3f} GB")
    if result["limit"] is None:
        return
    limit = f"{result['limit'] / 1e9:.2f} GB"
    if need["peak"] <= result["limit"]:
        print(f"fits in {limit}")
        return
    print(f"does not fit in {limit}; settings that fit:")
    for fit in result["fitting"]:
        print(f"  {fit['peak'] / 1e9:10.3f} GB  {_in_shell(fit['overrides'])}")
    if not result["fitting"]:
        print(
            "  no single setting is enough: combine several, use more ranks, or a smaller backbone"
        )


def show_time(result: dict[str, Any]) -> None:
    """Print the expected time as a table."""
    shares = ", ".join(
        f"{100 * share:.0f} % ({kind})" for kind, share in result["utilization"].items()
    )
    print(f"{result['card']}, {result['ranks']} rank(s), at {shares} of its peak; a forecast")
    for name, seconds in result["seconds"].items():
        print(f"  {name:<26}{seconds * 1e3:10.2f} ms")
    print(f"  {'images/s, all ranks':<26}{result['images_per_second']:10.0f}")
    if result["hours"] is None:
        print("  hours: not known; give the number of images with --images")
        return
    print(f"  {'hours per epoch':<26}{result['hours_per_epoch']:10.2f}")
    print(f"  {'hours':<26}{result['hours']:10.2f}")


def run(
    overrides: tuple[str, ...] = (),
    *,
    config: str,
    classes: Count | None = None,
    images: Count | None = None,
    device_memory: str | None = None,
    ranks: Count = 1,
    time: bool = False,
    card: str | None = None,
    utilization: Utilization | None = None,
) -> dict[str, Any]:
    """Plan and print.

    overrides: changes of the config, section.key=value.
    config: a YAML file, see configs/.
    classes: identities (default: counted in data.train).
    images: images of the training set, for the hours (default: counted in data.train).
    device_memory: what must be enough, such as 24GB (default: that of the card).
    ranks: processes of the run, over which centers are sharded.
    time: expected seconds per step and hours, from the card's data sheet.
    card: GPU of the run, such as "RTX 4090" (default: this machine's).
    utilization: share of the card's peak that matrix products reach, as scripts.bench.gpu measures
        it (default: assumed).
    """
    chosen = find_card(card) if card else this_card() if time else None
    if card:
        overrides = (*overrides, "run.device=cuda")
    limit = memory(device_memory) if device_memory else None
    if limit is None and card and chosen:
        limit = int(chosen.memory * UNITS["G"])
    result = plan(config, overrides, classes, limit, ranks)
    show(result)
    if time and chosen:
        result["time"] = plan_time(
            config,
            overrides,
            chosen,
            classes=classes,
            images=images,
            ranks=ranks,
            utilization=utilization,
        )
        show_time(result["time"])
    return result


main = command(run)
