"""Measures a training step of a backbone under several settings: images/s and losses.

    python -m scripts.bench.backbone                        float32, bf16, compiled: images/s
    python -m scripts.bench.backbone --losses 50 --batch 8  how far the losses of 50 steps differ
    python -m scripts.bench.backbone --table                every backbone: size, cost, images/s

Each variant runs in separate processes. Rounds alternate between the variants, and figures are
medians over steps. The variant `plain` is the textbook module: float32, NCHW, eager. The variant
`rounded` is `plain` with initial weights that were rounded to bf16 once. It shows how much a single
rounding changes the losses, with which the differences of bf16 training should be compared.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from data.options import Count, CountOrZero
from data.parts import find_part
from recognition.classifiers import full
from recognition.distributed import Ranks
from recognition.heads import cosface
from scripts._tables import show_table
from scripts.bench._measure import in_own_process, in_turn
from tools._backbone import BACKBONES, count_products, multiply_adds
from tools._cli import command

Variant = Literal["plain", "channels_last", "bf16", "bf16_compile", "rounded"]
VARIANTS: dict[str, frozenset[str]] = {
    "plain": frozenset(),
    "channels_last": frozenset({"channels_last"}),
    "bf16": frozenset({"channels_last", "bf16"}),
    "bf16_compile": frozenset({"channels_last", "bf16", "compile"}),
    "rounded": frozenset({"rounded"}),
}
ZOO: dict[str, dict[str, Any]] = {
    **{f"iresnet {depth}": {"depth": depth} for depth in (18, 34, 50, 100, 200)},
    **{f"ir {depth}": {"depth": depth} for depth in (18, 50, 101)},
    "ir 50 with SE": {"depth": 50, "se": True},
    "mobilefacenet": {},
    **{f"vit {variant}": {"variant": variant} for variant in ("tiny", "small", "base", "large")},
}
CLASSES = 100


def measure(
    backbone: str, options: dict[str, Any], variant: str, batch: int, size: int, steps: int
) -> dict[str, list[float]]:
    """Seconds of the timed steps, seconds of their forward passes, and all losses."""
    settings = VARIANTS[variant]
    torch.manual_seed(0)
    net: nn.Module = find_part(BACKBONES, backbone).build(size=size, **options)
    layout = torch.channels_last if "channels_last" in settings else torch.contiguous_format
    net = net.to(memory_format=layout)
    if "rounded" in settings:
        for parameter in net.parameters():
            parameter.data = parameter.data.bfloat16().float()
    head = cosface.build(margin=0.2, scale=16)
    classifier = full.build(backbone=net, classes=CLASSES, head=head, ranks=Ranks(), seed=0)
    parameters = [*net.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    forward = torch.compile(net) if "compile" in settings else net

    found: dict[str, list[float]] = {"seconds": [], "forward": [], "losses": []}
    draw = torch.Generator().manual_seed(1)
    faces = torch.randn(CLASSES, 3, size, size, generator=draw)
    for step in range(steps + 1):
        labels = torch.randint(CLASSES, (batch,), generator=draw)
        images = faces[labels] + torch.randn(batch, 3, size, size, generator=draw)
        images = images.contiguous(memory_format=layout)
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in settings):
            loss = classifier(forward, images, labels)
        found["losses"].append(loss.item())
        middle = time.perf_counter()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 0:  # the first step compiles and allocates
            found["seconds"].append(time.perf_counter() - start)
            found["forward"].append(middle - start)
    return found


def compare(
    runs: Mapping[str, Sequence[dict[str, list[float]]]], batch: int
) -> Iterator[dict[str, Any]]:
    """One row per variant, compared with the first."""
    base, first = 0.0, [0.0]
    for variant, rounds in runs.items():
        median = statistics.median(second for found in rounds for second in found["seconds"])
        losses = rounds[0]["losses"]
        if not base:
            base, first = median, losses
        apart = (abs(a - b) for a, b in zip(losses, first, strict=True))
        yield {
            "variant": variant,
            "images/s": batch / median,
            "times": base / median,
            "first loss": losses[0],
            "last loss": losses[-1],
            "mean difference": statistics.fmean(apart),
        }


def zoo(batch: int, steps: int) -> Iterator[dict[str, Any]]:
    """One row per backbone: parameters, multiply-adds of a forward pass, images/s in bf16."""
    for name, options in ZOO.items():
        backbone = name.partition(" ")[0]
        with FakeTensorMode(), count_products() as counter:
            net = find_part(BACKBONES, backbone).build(**options).eval()
            net(torch.empty(1, 3, 112, 112))
        found = in_own_process(measure, backbone, options, "bf16", batch, 112, steps)
        yield {
            "backbone": name,
            "parameters, M": sum(parameter.numel() for parameter in net.parameters()) / 1e6,
            "multiply-adds, G": multiply_adds(counter) / 1e9,
            "forward, images/s": batch / statistics.median(found["forward"]),
            "training, images/s": batch / statistics.median(found["seconds"]),
        }


def run(
    *,
    backbone: str = "iresnet",
    depth: Count | None = None,
    size: Count = 112,
    batch: Count = 32,
    steps: Count = 4,
    rounds: Count = 2,
    variants: tuple[Variant, ...] = ("plain", "bf16", "bf16_compile"),
    losses: CountOrZero = 0,
    table: bool = False,
) -> dict[str, Any]:
    """Compare the variants of one backbone.

    backbone: file in recognition/backbones/.
    depth: depth of the backbone (default: the backbone's own default).
    size: side of an image in pixels.
    batch: images per step.
    steps: timed steps per round.
    rounds: rounds over all variants.
    variants: variants that are compared; ratios are to the first one.
    losses: compare the losses of this many steps in one round; 0: measure speed instead.
    table: measure every backbone instead, in bf16.
    """
    if table:
        return {"rows": show_table(zoo(batch, steps))}
    options = {} if depth is None else {"depth": depth}

    def once(variant: str) -> dict[str, list[float]]:
        return in_own_process(measure, backbone, options, variant, batch, size, losses or steps)

    runs = in_turn(variants, 1 if losses else rounds, once)
    return {"rows": show_table(compare(runs, batch))}


main = command(run)
