"""Measures a training step of a backbone under several settings: images/s and losses.

    python -m scripts.bench.backbone                        float32, bf16, compiled: images/s
    python -m scripts.bench.backbone --losses 50 --batch 8  how far the losses of 50 steps differ
    python -m scripts.bench.backbone --table                every backbone: size, cost, images/s

Each variant runs in processes of its own. Rounds alternate between the variants, and figures are
medians over steps. The variant `plain` is the textbook module: float32, NCHW, eager. The variant
`rounded` is `plain` after its first weights were rounded to bf16 once. It shows how far a single
rounding carries the losses, which is the measure for the differences that bf16 training makes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from data.parts import find_part, part_names
from recognition.backbones.vit import VisionTransformer
from recognition.classifiers import full
from recognition.distributed import Ranks
from recognition.heads import cosface
from scripts._tables import show_table
from scripts.bench._measure import in_own_process, in_turn, names_of
from tools._cli import command_parser, run_command

BACKBONES = "recognition.backbones"
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


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per variant, compared with the first."""
    depth = {} if options.depth is None else {"depth": options.depth}
    steps = options.losses or options.steps

    def run_once(variant: str) -> dict[str, list[float]]:
        shape = (options.batch, options.size, steps)
        return in_own_process(measure, options.backbone, depth, variant, *shape)

    runs = in_turn(options.variants, 1 if options.losses else options.rounds, run_once)
    first = runs[options.variants[0]]
    for variant, found in runs.items():
        median, base = (
            statistics.median(s for r in rs for s in r["seconds"]) for rs in (found, first)
        )
        losses = found[0]["losses"]
        apart = (abs(a - b) for a, b in zip(losses, first[0]["losses"], strict=True))
        yield {
            "variant": variant,
            "images/s": options.batch / median,
            "times": base / median,
            "first loss": losses[0],
            "last loss": losses[-1],
            "mean difference": statistics.fmean(apart),
        }


def zoo(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per backbone: parameters, multiply-adds of a forward pass, images/s in bf16."""
    for name, settings in ZOO.items():
        backbone = name.partition(" ")[0]
        with FakeTensorMode(), FlopCounterMode(display=False) as counter:
            net = find_part(BACKBONES, backbone).build(**settings).eval()
            net(torch.empty(1, 3, 112, 112))
        run = in_own_process(measure, backbone, settings, "bf16", options.batch, 112, options.steps)
        yield {
            "backbone": name,
            "parameters, M": sum(parameter.numel() for parameter in net.parameters()) / 1e6,
            "multiply-adds, G": multiply_adds(net, counter) / 1e9,
            "forward, images/s": options.batch / statistics.median(run["forward"]),
            "training, images/s": options.batch / statistics.median(run["seconds"]),
        }


def multiply_adds(net: nn.Module, counter: FlopCounterMode) -> float:
    """Multiply-adds of the counted forward pass. Attention is added by hand, because some versions
    of torch leave fused attention out."""
    counted = counter.get_flop_counts()["Global"].items()
    dense = sum(count for kind, count in counted if "attention" not in str(kind)) / 2
    if not isinstance(net, VisionTransformer):
        return dense
    _, tokens, width = net.pos_embed.shape
    return dense + 2 * tokens**2 * width * len(net.blocks)


def run(options: argparse.Namespace) -> dict[str, Any]:
    return {"rows": show_table(zoo(options) if options.table else compare(options))}


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("scripts.bench.backbone", __doc__)
    parser.add_argument(
        "--backbone", choices=part_names(BACKBONES), default="iresnet", help="file in backbones/"
    )
    parser.add_argument("--depth", type=int, help="its depth (default: its own default)")
    parser.add_argument("--size", type=int, default=112, help="side of an image in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over all variants")
    parser.add_argument(
        "--variants",
        type=names_of(VARIANTS),
        default="plain,bf16,bf16_compile",
        metavar="NAME,NAME",
        help=f"some of {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--losses", type=int, metavar="STEPS", help="compare the losses of that many steps"
    )
    parser.add_argument("--table", action="store_true", help="measure every backbone instead")
    return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
