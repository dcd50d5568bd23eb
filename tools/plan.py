"""Plans the memory of a training run, and finds settings that fit if it needs too much.

    python -m tools.plan --config configs/NAME.yaml [section.key=value …] [--classes N]
        [--device-memory 24GB] [--ranks K] [--json]

The command itself needs little memory: it traces the backbone's forward pass on tensors without
storage, and asks the classifier what it needs. Figures are for one rank (process). The peak is the
larger of two moments: the start of the backward pass, when all activations exist, and the optimizer
step, when all gradients do.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from data.options import Count
from data.parts import find_part, part_names
from recognition.classifiers import ClassifierFacts, Overrides, Sizes
from recognition.config import Config, ConfigError, Part
from recognition.parse import build_part, load_config
from tools._cli import command
from tools._memory import resident_bytes

CLASSIFIERS = "recognition.classifiers"
CUDA_CONTEXT = 600_000_000  # bytes that a process needs on a GPU before its first tensor
# Bytes that the first training step adds on a CPU, even for a tiny model (measured).
CPU_RUNTIME = 200_000_000
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
SMALLEST_BATCH = 8  # batches are not halved below


def facts_of(classifier: str) -> ClassifierFacts:
    """What a classifier's module says about itself."""
    facts: ClassifierFacts = find_part(CLASSIFIERS, classifier).FACTS
    return facts


def backbone_need(config: Config) -> dict[str, int]:
    """The backbone's parameters and embedding, and the bytes of its activations in training."""
    options = json.dumps(dict(config.backbone.options))
    images = facts_of(config.classifier.name).trained_images(config)
    return _traced(config.backbone.name, options, images, config.data.size, config.run.precision)


@cache  # plans of one command differ in the classifier more often than in the backbone
def _traced(name: str, options: str, batch_size: int, size: int, precision: str) -> dict[str, int]:
    from recognition.device import autocast

    # By address. The storages stay referenced here, so that no other gets the same address.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        net = build_part("recognition.backbones", Part(name, json.loads(options)), size=size)
        images = torch.zeros(batch_size, 3, size, size)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, autocast(torch.device("cpu"), precision):
            outputs = net(images)
    for parameter in net.parameters():
        saved.pop(parameter.untyped_storage()._cdata, None)
    activations = [storage.nbytes() for storage in saved.values()]
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "activations": sum(activations),
        "largest": max(activations),
        "embedding": outputs.shape[1],
    }


def estimate(config: Config, classes: int, ranks: int, base: int) -> dict[str, int]:
    """Bytes of one rank's memory by what needs them, and their `peak`.

    base: bytes that the process needs without the run.
    """
    net, optim = backbone_need(config), config.optim
    weights = 4 * net["parameters"]
    sizes = Sizes(
        classes,
        ranks,
        embedding=net["embedding"],
        backbone_bytes=weights,
        optimizer_states=2 if optim.name == "adamw" else int(optim.momentum > 0),
        device="cuda" if on_gpu(config) else "cpu",
    )
    classifier = facts_of(config.classifier.name).memory(config, sizes)
    always = {
        "process": base,
        "backbone weights": weights,
        "backbone optimizer state": weights * sizes.optimizer_states,
        # uint8, float32, and augmented float32
        "batch": optim.batch_size * 3 * config.data.size**2 * (1 + 4 + 4),
        **classifier.kept,
    }
    backward = {
        "activations": net["activations"] + 2 * net["largest"],
        "logits (one chunk)": classifier.chunk,
    }
    step = {"backbone gradients": weights}
    moments = sum(backward.values()), sum(step.values()) + classifier.step
    return {**always, **backward, **step, "peak": sum(always.values()) + max(moments)}


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
    count = classes if classes is not None else classes_of(config, path)
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


def classes_of(config: Config, path: str) -> int:
    """Identities of the config's training set. ConfigError where it can't be opened."""
    from data.faces import open_faces, resolve_path

    try:
        where = resolve_path(config.data.train, config.data.root)
        return open_faces(where, config.data.format).num_classes
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: data.train: {error}; give the number of identities with --classes"
        ) from None


def process_bytes(config: Config) -> int:
    """Bytes of a process without its run: on a CPU its resident size, on a GPU the context's."""
    if on_gpu(config):
        return CUDA_CONTEXT
    import recognition.experiment  # noqa: F401 - what a run imports counts

    return resident_bytes() + CPU_RUNTIME


def on_gpu(config: Config) -> bool:
    """Whether the run will be on a GPU."""
    auto = config.run.device == "auto"
    return torch.cuda.is_available() if auto else config.run.device == "cuda"


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
        words = " ".join(repr(word) if " " in word else word for word in fit["overrides"])
        print(f"  {fit['peak'] / 1e9:10.3f} GB  {words}")
    if not result["fitting"]:
        print(
            "  no single setting is enough: combine several, use more ranks, or a smaller backbone"
        )


def run(
    overrides: tuple[str, ...] = (),
    *,
    config: str,
    classes: Count | None = None,
    device_memory: str | None = None,
    ranks: Count = 1,
) -> dict[str, Any]:
    """Plan and print.

    overrides: changes of the config, section.key=value.
    config: a YAML file, see configs/.
    classes: identities (default: counted in data.train).
    device_memory: what must be enough, such as 24GB.
    ranks: processes of the run, over which centers are sharded.
    """
    limit = memory(device_memory) if device_memory else None
    result = plan(config, overrides, classes, limit, ranks)
    show(result)
    return result


main = command(run)
