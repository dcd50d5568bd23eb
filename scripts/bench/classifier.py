"""Full classifier step (loss, gradients, SGD update) against the plain PyTorch one: time and peak
memory, side by side.

    python -m scripts.bench.classifier --classes 617970 --batch 128
    python -m scripts.bench.classifier --classes 2059906 --variants fused,fused_bf16_momentum --json
    python -m scripts.bench.classifier --classes 617970 --variants
    chunked,fused,class_pool,class_pool_bf16

Every variant runs in processes of its own; rounds alternate between variants; time is the median
step, memory the largest resident size of the process. `plain` is normalize, linear, margin,
cross_entropy and torch.optim.SGD in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"fused": False},
    "fused": {"fused": True},
    "fused_bf16": {"fused": True, "matmul_dtype": "bfloat16"},
    "fused_bf16_momentum": {"fused": True, "momentum_dtype": "bfloat16"},
    "fused_bf16_both": {"fused": True, "matmul_dtype": "bfloat16", "momentum_dtype": "bfloat16"},
    "class_pool": {"size": 0.1},
    "class_pool_bf16": {"size": 0.1, "matmul_dtype": "bfloat16"},
}


def peak_bytes() -> int:
    """Largest resident size that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            int(
                next(
                    line for line in status.read_text().splitlines() if line.startswith("VmHWM")
                ).split()[1]
            )
            * 1024
        )
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plain_step(classes: int, embedding: int) -> Callable[..., float]:
    """One step of the textbook classifier (CosFace 0.4, s 64)."""
    import torch
    from torch.nn import functional as F

    weight = torch.nn.Parameter(torch.empty(classes, embedding).normal_(0, 0.01))
    optimizer = torch.optim.SGD([weight], lr=0.02, momentum=0.9, weight_decay=5e-4)

    def step(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)
        margin = torch.zeros_like(logits).scatter_(1, labels[:, None], 0.4)
        loss = F.cross_entropy(64.0 * (logits - margin), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def fill(pool: Any) -> None:
    """Put identities into every column of a class pool."""
    import torch

    for labels in torch.randperm(len(pool.columns))[: pool.size].split(512):
        plan = pool.plan(labels)
        features = torch.nn.functional.normalize(torch.randn(len(labels), pool.features.shape[2]))
        pool.commit(plan, features)


def our_step(
    classes: int, embedding: int, chunk: int, batch: int, options: dict[str, Any]
) -> Callable[..., float]:
    """One step of recognition/classifiers/full.py; where options say a size, of class_pool.py, its
    pool full."""
    import torch

    from recognition.classifiers import class_pool, full
    from recognition.distributed import Ranks
    from recognition.heads import cosface

    class Identity(torch.nn.Linear):
        """A backbone without work: returns what it is given."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    backbone = Identity(1, 1)
    backbone.embedding = embedding  # type: ignore[assignment]
    head = cosface.build()
    shared: dict[str, Any] = {
        "backbone": backbone,
        "classes": classes,
        "head": head,
        "ranks": Ranks(),
    }
    shared["chunk"] = chunk or "auto"
    classifier: class_pool.ClassPoolClassifier | full.FullClassifier
    if "size" in options:
        classifier = class_pool.build(**shared, **options, batch_size=batch)
        fill(classifier.pool)
    else:
        classifier = full.build(**shared, **options, seed=0)
    optimizer = None
    if options.get("fused") is False:
        optimizer = torch.optim.SGD(
            classifier.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4
        )

    def step(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        classifier.before_step(0.02)
        loss = classifier(backbone, embeddings, labels)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        classifier.after_step()
        return loss.item()

    return step


def measure(variant: str, args: argparse.Namespace) -> dict[str, object]:
    """Seconds of each timed step, first losses and peak memory, in this process."""
    import torch

    torch.manual_seed(0)
    if variant == "plain":
        step = plain_step(args.classes, args.embedding)
    else:
        step = our_step(args.classes, args.embedding, args.chunk, args.batch, VARIANTS[variant])
    seconds, losses = [], []
    for index in range(args.steps + 1):
        embeddings = torch.randn(args.batch, args.embedding).requires_grad_()
        labels = torch.randint(args.classes, (args.batch,))
        half, pairs = args.batch // 2, args.batch // 3
        # as in a class pool's batches; nothing to the others
        labels[half : half + pairs] = labels[:pairs]
        start = time.perf_counter()
        losses.append(step(embeddings, labels))
        if index > 0:  # the first step allocates
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "losses": losses, "peak": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=93431)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=0, help="classes a chunk; 0: auto")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", default="plain,fused,fused_bf16,fused_bf16_momentum")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return
    variants = args.variants.split(",")
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown:
        parser.error(f"--variants {','.join(unknown)}: expected some of {','.join(VARIANTS)}")
    runs: dict[str, list[dict]] = {variant: [] for variant in variants}
    for _ in range(args.rounds):
        for variant in variants:
            command = [sys.executable, "-m", "scripts.bench.classifier", "--measure", variant]
            for name in ("classes", "batch", "embedding", "chunk", "steps"):
                command += [f"--{name}", str(getattr(args, name))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
    table = {
        variant: {
            "seconds": statistics.median(second for run in rounds for second in run["seconds"]),
            "peak_gb": max(run["peak"] for run in rounds) / 1e9,
        }
        for variant, rounds in runs.items()
    }
    print(
        f"C {args.classes}, D {args.embedding}, B {args.batch}; {args.rounds} rounds of {args.steps} steps"
    )
    print(f"{'variant':<22}{'s/step':>9}{'peak GB':>9}{'time':>8}{'memory':>8}")
    for figures in table.values():
        figures["time_ratio"] = figures["seconds"] / table[variants[0]]["seconds"]
        figures["memory_ratio"] = figures["peak_gb"] / table[variants[0]]["peak_gb"]
    for variant, f in table.items():
        line = (
            f"{f['seconds']:9.3f}{f['peak_gb']:9.2f}{f['time_ratio']:8.2f}{f['memory_ratio']:8.2f}"
        )
        print(f"{variant:<22}{line}")
    if args.json:
        settings = {
            name: getattr(args, name)
            for name in ("classes", "batch", "embedding", "chunk", "steps", "rounds")
        }
        print(json.dumps({**settings, "variants": table}))


if __name__ == "__main__":
    main()
