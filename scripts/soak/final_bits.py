"""Hashes the final tensors of small seeded runs, to show that an edit changes no number.

    python -m scripts.soak.final_bits --checkout FOLDER

A hash (sha256) covers all tensors in the last checkpoint of a run, of all ranks. The tensors are
sorted by their own hashes, so that neither their names nor their places matter. The bits depend on
the processor and on the version of torch, so compare two checkouts on one machine.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tools._cli import command

# No key here was renamed since 0.1.0, so that older checkouts accept the same commands.
COMMON = (
    *("--config", "configs/quickstart.yaml"),
    *("run.compile=false", "run.device=cpu", "run.precision=fp32", "run.channels_last=false"),
    *("data.train=synthetic:identities=300,images=4", "data.size=32", "data.threads=2"),
    "backbone={name: iresnet, depth: 18, width: 8, embedding: 32}",
    *("optim.batch_size=24", "optim.epochs=1", "run.log_steps=5", "evaluate.sets=[]"),
)
VIT = "backbone={name: vit, depth: 2, width: 32, heads: 2, embedding: 32}"
RUNS = {
    "full chunked": ["classifier={name: full, chunk: 64}"],
    "full fused": ["classifier={name: full, chunk: 64, fused: true}"],
    "partial, AdamW, accumulation": [
        *("classifier={name: partial}", "optim.accumulation=2"),
        *("optim.name=adamw", "optim.lr=0.001", "optim.nesterov=false"),
    ],
    "class pool": ["classifier={name: class_pool}"],
    "semi-siamese, agents": ["classifier={name: semi_siamese, agents: 2}"],
    "bf16": ["run.precision=bf16", "run.channels_last=true"],
    "MagFace": ["head={name: magface}"],
    "CurricularFace": ["head={name: curricularface}"],
    "two ranks, full": ["classifier={name: full, chunk: 64}"],
    "two ranks, class pool": ["classifier={name: class_pool}"],
    "two ranks, partial": ["classifier={name: partial}", "optim.nesterov=false"],
    "FastFace, ElasticFace, ViT": ["head={name: elasticface}", VIT, "scheduler={name: fastface}"],
}
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def final_hash(folder: Path) -> str:
    """One hash of all tensors in the newest checkpoint of a run folder.

    The fingerprint of the training set is left out, because no step computes it.
    """
    newest = max((folder / "checkpoints").glob("step_*"))
    states = [torch.load(file, weights_only=True) for file in sorted(newest.glob("*.pt"))]
    for state in states:
        state.pop("faces", None)
    return hashlib.sha256("".join(sorted(tensor_hashes(states))).encode()).hexdigest()


def tensor_hashes(node: Any) -> Iterator[str]:
    """The hash of type, shape and bytes of each tensor below `node`."""
    if torch.is_tensor(node):
        numbers = node.contiguous().reshape(-1)
        raw = numbers.view(torch.uint8).numpy().tobytes() if len(numbers) else b""
        kind = f"{node.dtype}{tuple(node.shape)}".encode()
        yield hashlib.sha256(kind + raw).hexdigest()
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from tensor_hashes(child)


def run(name: str, checkout: str) -> str:
    """Train the run called `name` with the code of `checkout`, and return its final hash."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = TWO_RANKS if name.startswith("two ranks") else ()
        output = f"run.output={folder}/run"
        command = [sys.executable, *launcher, "train.py", *COMMON, *RUNS[name], output]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return final_hash(Path(folder, "run"))


def run_all(*, checkout: str = ".") -> dict[str, str]:
    """Run and hash all of RUNS.

    checkout: folder whose train.py is run.
    """
    hashes = {}
    for name in RUNS:
        hashes[name] = run(name, checkout)
        print(f"{hashes[name]}  {name}", flush=True)
    return hashes


main = command(run_all)
