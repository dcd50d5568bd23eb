"""What the GPU benchmark checks besides speed. Each check returns a record with `passed`."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastface import FastFaceLR, MovingHaarLR
from recognition import checkpoint

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]
Scheduler = FastFaceLR | MovingHaarLR
# Short averages, and thresholds that this loss falls below now and then, so that decays happen.
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Scheduler]] = {
    "fastface": lambda optimizer: FastFaceLR(
        optimizer, 400, alpha=0.1, beta=0.1, threshold=0.002, patience_fraction=0.02
    ),
    "moving_haar": lambda optimizer: MovingHaarLR(optimizer, 10, threshold=0.01, patience_steps=8),
}
RUN = """
data: {train: "synthetic:identities=40,images=8,size=32", size: 32}
backbone: {name: iresnet, depth: 18, width: 8, embedding: 32}
head: {name: arcface, margin: 0.3, scale: 16}
classifier: {name: partial, sample_rate: 0.5}
optim: {lr: 0.05, batch_size: 16, epochs: 2}
scheduler: {name: fastface, warmup_steps: 2}
run: {output: OUTPUT, precision: bf16, log_steps: 1, checkpoint_steps: 4}
"""


def cuda_tests() -> Record:
    """The tests that are marked `cuda`, and which failed. Without a GPU they are skipped."""
    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.cuda" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", *marked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    last = lines[-1].strip() if lines else "no output"
    return {"passed": done.returncode == 0, "found": last, **({"failed": failed} if failed else {})}


def lag() -> Record:
    """The schedules on losses of this device, against the same ones on floats.

    On CUDA a loss takes effect one step later than a float, and nothing else differs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    later = 1 if device.type == "cuda" else 0
    found: Record = {"passed": True, "steps later": later}
    for name, build in SCHEDULERS.items():
        rates, losses = _train_with(build, device)
        expected = _replay(build, losses)
        same = rates[later:] == expected[: len(expected) - later] and rates[0] == expected[0]
        found[name] = {"equal": same, "changes": sum(a != b for a, b in pairwise(rates))}
        found["passed"] &= same
    return found


def _train_with(
    build: Callable[[torch.optim.Optimizer], Scheduler], device: torch.device, steps: int = 300
) -> tuple[list[float], list[float]]:
    """Learning rates after each step of a small training, and its losses."""
    torch.manual_seed(0)
    net = nn.Linear(16, 4).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = build(optimizer)
    inputs = torch.randn(64, 16, device=device)
    targets = inputs[:, :4].sin()
    rates, losses = [], []
    for _ in range(steps):
        loss = (net(inputs + 0.3 * torch.randn_like(inputs)) - targets).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(loss.detach())
        rates.append(float(optimizer.param_groups[0]["lr"]))
        losses.append(loss.detach())
    return rates, [float(loss) for loss in losses]


def _replay(
    build: Callable[[torch.optim.Optimizer], Scheduler], losses: list[float]
) -> list[float]:
    """Learning rates after each step of a schedule that reads floats."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = build(optimizer)
    rates = []
    for loss in losses:
        optimizer.step()
        scheduler.step(loss)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def resume() -> Record:
    """A run that is killed and resumed, against one that is not.

    Passed if all bits are equal with `run.deterministic`. Without it, which makes no difference on
    a CPU, the largest difference of a weight is told.
    """
    exact = _killed_and_whole("run.deterministic=true")
    found = {"passed": exact == 0.0, "difference, deterministic": exact}
    return found | ({"difference": _killed_and_whole()} if torch.cuda.is_available() else {})


def _killed_and_whole(*overrides: str) -> float:
    """The largest difference between the final weights of both runs."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "run.yaml")
        config.write_text(RUN)
        start = (sys.executable, "-u", "train.py", "--config", str(config), *overrides)
        with _started([*start, f"run.output={folder}/whole"]) as whole:
            killed = [*start, f"run.output={folder}/killed"]
            _kill(killed, Path(folder, "killed"))
            _finish(whole)
        with _started([*killed, "--resume"]) as resumed:
            _finish(resumed)
        a, b = (_weights(Path(folder, name)) for name in ("whole", "killed"))
        return max(_difference(a[name], b[name]) for name in a)


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"train.py: exit code {process.returncode}: {output[-500:]}")


def _kill(command: list[str], output: Path) -> None:
    """Start a run, and kill it when it logs a step after its first checkpoint."""
    with _started(command) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            if checkpoint.newest(output / "checkpoints") is not None:
                process.kill()
                break
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"train.py ended with {process.returncode} before it could be killed")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    """Tensors of the last checkpoint: backbone and classifier."""
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    shared, locals_ = checkpoint.load(newest)
    state = {**shared["backbone"], **locals_[0]["classifier"]}
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


CHECKS: dict[str, Callable[[], Record]] = {"lag": lag, "cuda_tests": cuda_tests, "resume": resume}
