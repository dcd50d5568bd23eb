"""One training step of a backbone under several configurations, side by side: images a second, and
the losses.

    python -m scripts.bench.backbone                        # iResNet-50 at 112: fp32 NCHW, bf16
    channels_last, compile
    python -m scripts.bench.backbone --losses 50 --batch 8  # 50 steps on the same batches: how far
    the losses part
    python -m scripts.bench.backbone --table                # every backbone: parameters,
    multiply-adds, images/s

Every variant runs in processes of its own; rounds alternate between variants; figures are medians
over steps. `plain` is the textbook module: float32, NCHW, eager. `rounded` is the same after its
first weights were rounded to bf16 once: how far one rounding carries the losses is what to hold the
differences of bf16 training against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from typing import Any

VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {"bf16": False, "channels_last": False, "compile": False},
    "channels_last": {"bf16": False, "channels_last": True, "compile": False},
    "bf16": {"bf16": True, "channels_last": True, "compile": False},
    "bf16_compile": {"bf16": True, "channels_last": True, "compile": True},
    "rounded": {"bf16": False, "channels_last": False, "compile": False, "rounded": True},
}
ZOO: dict[str, dict[str, Any]] = {
    "iresnet 18": {"backbone": "iresnet", "depth": 18},
    "iresnet 34": {"backbone": "iresnet", "depth": 34},
    "iresnet 50": {"backbone": "iresnet", "depth": 50},
    "iresnet 100": {"backbone": "iresnet", "depth": 100},
    "iresnet 200": {"backbone": "iresnet", "depth": 200},
    "ir 18": {"backbone": "ir", "depth": 18},
    "ir 50": {"backbone": "ir", "depth": 50},
    "ir 101": {"backbone": "ir", "depth": 101},
    "ir-se 50": {"backbone": "ir", "depth": 50, "se": True},
    "mobilefacenet": {"backbone": "mobilefacenet"},
    "vit tiny": {"backbone": "vit", "variant": "tiny"},
    "vit small": {"backbone": "vit", "variant": "small"},
    "vit base": {"backbone": "vit", "variant": "base"},
    "vit large": {"backbone": "vit", "variant": "large"},
}


def build(options: dict[str, Any]) -> Any:
    """The backbone that {"backbone": file, options…} names."""
    rest = {key: value for key, value in options.items() if key != "backbone"}
    return importlib.import_module(f"recognition.backbones.{options['backbone']}").build(**rest)


def measure(
    options: dict[str, Any], variant: dict[str, bool], batch: int, size: int, steps: int
) -> dict[str, Any]:
    """Seconds and losses of `steps` training steps (forward alone too), in this process."""
    import torch

    from recognition.classifiers import full
    from recognition.distributed import Ranks
    from recognition.heads import cosface

    torch.manual_seed(0)
    net = build({**options, "size": size})
    layout = torch.channels_last if variant["channels_last"] else torch.contiguous_format
    net = net.to(memory_format=layout)
    if variant.get("rounded"):
        for parameter in net.parameters():
            parameter.data = parameter.data.bfloat16().float()
    classifier = full.build(
        backbone=net, classes=100, head=cosface.build(margin=0.2, scale=16), ranks=Ranks(), seed=0
    )
    parameters = [*net.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
    forward = torch.compile(net) if variant["compile"] else net
    seconds, forwards, losses = [], [], []
    draw = torch.Generator().manual_seed(1)
    faces = torch.randn(100, 3, size, size, generator=draw)
    for step in range(steps + 1):
        labels = torch.randint(100, (batch,), generator=draw)
        images = (faces[labels] + torch.randn(batch, 3, size, size, generator=draw)).contiguous(
            memory_format=layout
        )
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=variant["bf16"]):
            loss = classifier(forward, images, labels)
        losses.append(loss.item())
        middle = time.perf_counter()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 0:  # the first step compiles and allocates
            seconds.append(time.perf_counter() - start)
            forwards.append(middle - start)
    return {"seconds": seconds, "forward": forwards, "losses": losses}


def in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.bench.backbone", "--measure", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Variants of one backbone; the first is what the others are compared with."""
    variants = args.variants.split(",")
    steps = args.losses or args.steps
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for _ in range(1 if args.losses else args.rounds):
        for name in variants:
            job = {
                "options": {"backbone": args.backbone, "depth": args.depth},
                "variant": VARIANTS[name],
            }
            runs[name].append(
                in_own_process({**job, "batch": args.batch, "size": args.size, "steps": steps})
            )
    rate = {
        n: args.batch / statistics.median(s for run in r for s in run["seconds"])
        for n, r in runs.items()
    }
    first = runs[variants[0]][0]["losses"]
    table: dict[str, Any] = {}
    print(f"{args.backbone} {args.depth}, {args.size} px, batch {args.batch}, {steps} steps")
    print(
        f"{'variant':<16}{'images/s':>10}{'times':>8}{'first loss':>12}{'last loss':>12}{'mean |difference|':>20}"
    )
    for name in variants:
        losses, times = runs[name][0]["losses"], rate[name] / rate[variants[0]]
        apart = statistics.fmean(abs(a - b) for a, b in zip(losses, first, strict=True))
        table[name] = {"images_per_second": rate[name], "times": times, "loss_difference": apart}
        speed = f"{rate[name]:10.2f}{times:8.2f}"
        print(f"{name:<16}{speed}{losses[0]:12.4f}{losses[-1]:12.4f}{apart:20.4f}")
    return table


def zoo(args: argparse.Namespace) -> dict[str, Any]:
    """Every backbone: parameters, multiply-adds of a forward pass, images/s forward and in training
    (bf16)."""
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    table: dict[str, Any] = {}
    print(
        "| backbone | parameters, M | multiply-adds, G | forward, images/s | training step, images/s |"
    )
    print("|---|---|---|---|---|")
    for name, options in ZOO.items():
        with FakeTensorMode(), FlopCounterMode(display=False) as counter:
            net = build(options).eval()
            net(torch.empty(1, 3, 112, 112))
        blocks = getattr(net, "blocks", [])
        attention = sum(
            2 * net.pos_embed.shape[1] ** 2 * block.attn.proj.in_features for block in blocks
        )
        counted = counter.get_flop_counts()[
            "Global"
        ].items()  # some versions of torch leave fused attention out
        operations = (
            sum(count for kind, count in counted if "attention" not in str(kind)) / 2 + attention
        )
        parameters = sum(parameter.numel() for parameter in net.parameters())
        job = {
            "options": options,
            "variant": VARIANTS["bf16"],
            "batch": args.batch,
            "size": 112,
            "steps": args.steps,
        }
        run = in_own_process(job)
        forward, step = (args.batch / statistics.median(run[key]) for key in ("forward", "seconds"))
        table[name] = {
            "parameters": parameters,
            "multiply_adds": operations,
            "forward": forward,
            "training": step,
        }
        print(
            f"| {name} | {parameters / 1e6:.2f} | {operations / 1e9:.2f} | {forward:.1f} | {step:.1f} |",
            flush=True,
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="iresnet")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", default="plain,bf16,bf16_compile")
    parser.add_argument(
        "--losses",
        type=int,
        default=0,
        metavar="STEPS",
        help="compare the losses of that many steps",
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    unknown = sorted(set(args.variants.split(",")) - set(VARIANTS))
    if unknown:
        parser.error(f"--variants {','.join(unknown)}: expected some of {','.join(VARIANTS)}")
    table = zoo(args) if args.table else compare(args)
    if args.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
