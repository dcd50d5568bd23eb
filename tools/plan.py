"""What a training run will need in memory, and which settings fit when it does not.

    python -m tools.plan configs/NAME.yaml [section.key=value ...] [--classes N] [--device-memory
    24GB] [--ranks K]

Nothing of the run's size is allocated: the backbone's forward pass is traced on tensors without
storage. Figures are for one rank. The peak is the larger of two moments: the start of the backward
pass, when all activations are alive, and the optimizer step, when all gradients are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from recognition.classifiers._margin_softmax import CHUNK_BYTES
from recognition.classifiers.class_pool import BATCH_PARTS, pool_columns
from recognition.config import Config, ConfigError, Part, build_part, load_config

CUDA_CONTEXT = 600_000_000  # bytes that a process takes on a GPU before its first tensor
# bytes that the first training step adds on a CPU however small the model (measured)
CPU_RUNTIME = 200_000_000
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def backbone_need(config: Config) -> dict[str, int]:
    """Numbers of the backbone: parameters, and bytes that its forward pass leaves for the backward
    pass."""
    options = json.dumps(dict(config.backbone.options))
    batch = config.optim.batch_size
    if config.classifier.name == "class_pool" and not config.classifier.options["swap"]:
        batch //= 2  # the other half goes through the gallery network, which keeps nothing
    return _traced(config.backbone.name, options, batch, config.data.size, config.run.precision)


@cache  # plans of one command differ in the classifier more often than in the backbone
def _traced(name: str, options: str, batch_size: int, size: int, precision: str) -> dict[str, int]:
    from recognition.device import autocast

    saved: dict[int, int] = {}
    parameters: set[int] = set()
    keep: list[torch.Tensor] = []
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage.nbytes()
            largest = max(largest, storage.nbytes())
            keep.append(tensor)  # so that no other tensor takes its place in `saved`
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        net = build_part("recognition.backbones", Part(name, json.loads(options)), size=size)
        parameters |= {p.untyped_storage()._cdata for p in net.parameters()}
        images = torch.zeros(batch_size, 3, size, size)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, autocast(torch.device("cpu"), precision):
            outputs = net(images)
        counts: dict[str, int] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "activations": sum(saved.values()),
            "largest": largest,
            "embedding": outputs.shape[1],
        }
    return counts


def estimate(config: Config, classes: int, ranks: int, base: int) -> dict[str, int]:
    """Bytes of each part of one rank's memory, and their `peak`. base: what the process takes
    without the run."""
    net = backbone_need(config)
    options = config.classifier.options
    states = 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)
    local = -(-classes // ranks)
    width, batch = net["embedding"], config.optim.batch_size * ranks
    need = {
        "process": base,
        "backbone weights": 4 * net["parameters"],
        "backbone optimizer state": 4 * net["parameters"] * states,
        "activations": net["activations"] + 2 * net["largest"],
        "batch": config.optim.batch_size * 3 * config.data.size**2 * (1 + 4 + 4),
    }
    gradients, temporary = 4 * net["parameters"], 0
    if config.classifier.name == "class_pool":
        columns = pool_columns(options["size"], classes, needed=batch // 2)
        batch = config.optim.batch_size // 2  # each rank compares its own probes, a pass at a time
        need["gallery network"] = 4 * net["parameters"]
        need["class pool"] = 2 * columns * width * 4 + 16 * classes
        centers = columns
    else:
        rows = local * options.get("sub_centers", 1)
        centers = local
        need["centers"] = rows * width * 4
        half = options.get("momentum_dtype") == "bfloat16"
        if config.classifier.name == "partial":
            rate, times = options["sample_rate"], config.optim.accumulation
            sampled = round(rows * rate) * width * 4
            need["centers' momentum"] = (
                rows * width * ((2 if half else 4) + 4 * (config.optim.name == "adamw"))
            )
            # each micro-batch's rows themselves, and theirs
            need["centers' gradient"] = 2 * sampled * times
            temporary = sampled + round(rows * (1 - (1 - rate) ** times)) * width * 4
        elif options.get("fused"):
            need["centers' momentum"] = rows * width * (2 if half else 4)
        else:
            need["centers' momentum"] = rows * width * 4 * states
            need["centers' gradient"] = rows * width * 4
            temporary = rows * width * 4 * (bool(config.optim.weight_decay) + config.optim.nesterov)
    chunk = options.get("chunk")
    if not isinstance(chunk, int):
        chunk = CHUNK_BYTES["cuda" if on_gpu(config) else "cpu"] // (4 * width)
    need["logits (one chunk)"] = min(chunk, centers) * (4 * batch + 2 * width) * 4
    backward = need["activations"] + need["logits (one chunk)"]
    stepping = gradients + temporary
    need["backbone gradients"] = gradients
    rest = sum(need.values()) - backward - gradients
    need["peak"] = rest + max(backward, stepping)
    return need


def alternatives(config: Config) -> list[list[str]]:
    """Overrides worth trying, from those that change nothing but time to those that change the
    training.

    Some may be ones that a run refuses.
    """
    name, options, optim = config.classifier.name, config.classifier.options, config.optim
    tries: list[list[str]] = []
    plain_sgd = optim.name == "sgd" and not optim.nesterov and optim.accumulation == 1
    if name == "full" and not options["fused"] and plain_sgd:
        # loss scaling forbids the fused update
        bf16 = ["run.precision=bf16"] if config.run.precision == "fp16" else []
        tries.append([*bf16, "classifier.fused=true"])
        tries.append([*bf16, "classifier.fused=true", "classifier.momentum_dtype=bfloat16"])
    elif (
        name in ("full", "partial")
        and options.get("momentum_dtype") == "float32"
        and (options.get("fused", True))
    ):
        tries.append(["classifier.momentum_dtype=bfloat16"])
    if config.backbone.options.get("checkpoint") is False:
        tries.append(["backbone.checkpoint=true"])
    if config.run.precision == "fp32":
        tries.append(["run.precision=bf16"])
    halved, times = optim.batch_size, optim.accumulation
    parts = 2 * (BATCH_PARTS if name == "class_pool" else 1)
    while halved % parts == 0 and halved >= 16 and not options.get("fused"):
        halved, times = halved // 2, times * 2
        tries.append([f"optim.batch_size={halved}", f"optim.accumulation={times}"])
    if name in ("full", "partial"):
        now = options.get("sample_rate", 1.0)
        head = [] if name == "partial" else ["classifier={name: partial}"]
        tries += [
            [*head, f"classifier.sample_rate={rate}"] for rate in (0.5, 0.3, 0.1) if rate < now
        ]
        rest = optim.batch_size % BATCH_PARTS
        batch = [f"optim.batch_size={optim.batch_size - rest or BATCH_PARTS}"] if rest else []
        tries += [
            [f"classifier={{name: class_pool, size: {size}}}", *batch] for size in (0.1, 0.01)
        ]
    return tries


def plan(
    path: str, overrides: Sequence[str], classes: int | None, limit: int | None, ranks: int
) -> dict[str, Any]:
    """Estimate of the config as written and, where a limit is given and passed, of the settings
    that fit in it."""
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
    if limit is not None and need["peak"] > limit:
        for tried in alternatives(config):
            try:
                peak = estimate(load_config(path, [*overrides, *tried]), count, ranks, base)["peak"]
            except (
                ValueError
            ):  # a combination that a run refuses, such as a pool smaller than the batch
                continue
            if peak <= limit:
                result["fitting"].append({"overrides": tried, "peak": peak})
    return result


def classes_of(config: Config, path: str) -> int:
    """Identities of the config's training set. Raises ConfigError where it can't be opened."""
    from data.faces import open_faces, resolve_path

    try:
        return open_faces(
            resolve_path(config.data.train, config.data.root), config.data.format
        ).num_classes
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: data.train: {error}; give the number of identities with --classes"
        ) from None


def process_bytes(config: Config) -> int:
    """Bytes of a run's process without the run: this one's resident size on a CPU, the context's on
    a GPU."""
    status = Path("/proc/self/status")
    if on_gpu(config) or not status.exists():
        return CUDA_CONTEXT
    import recognition.experiment  # noqa: F401 - what a run imports counts

    return int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0]) * 1024 + CPU_RUNTIME


def on_gpu(config: Config) -> bool:
    """Whether the run will be on a GPU."""
    return config.run.device == "cuda" or (
        config.run.device == "auto" and torch.cuda.is_available()
    )


def memory(text: str) -> int:
    """Bytes of `24GB`, `512M`, `8000000000`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 24GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def show(result: dict[str, Any]) -> None:
    """The estimate as a table on stdout."""
    need = result["bytes"]
    print(f"{result['classes']} identities, {result['ranks']} rank(s); bytes of one rank")
    for name, count in need.items():
        print(f"  {name:<26}{count / 1e9:10.3f} GB")
    if result["limit"] is None:
        return
    if need["peak"] <= result["limit"]:
        print(f"fits in {result['limit'] / 1e9:.2f} GB")
        return
    print(f"does not fit in {result['limit'] / 1e9:.2f} GB; settings that do:")
    for fit in result["fitting"]:
        words = " ".join(repr(part) if " " in part else part for part in fit["overrides"])
        print(f"  {fit['peak'] / 1e9:10.3f} GB  {words}")
    if not result["fitting"]:
        print("  none alone: combine them, take more ranks, or a smaller backbone")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--classes", type=int, help="identities; read from data.train unless given")
    parser.add_argument("--device-memory", type=memory, metavar="24GB", help="what must be enough")
    parser.add_argument(
        "--ranks", type=int, default=1, help="processes; they share full and partial centers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    args = parser.parse_intermixed_args()
    try:
        result = plan(args.config, args.overrides, args.classes, args.device_memory, args.ranks)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(result)
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
