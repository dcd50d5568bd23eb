"""The class pool over processes and in whole runs: equal numbers, equal pools, exact resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from data.parts import find_part, part_names
from recognition import checkpoint, experiment
from recognition.classifiers._gallery import check_equal
from recognition.classifiers.class_pool import ClassPoolClassifier, build
from recognition.config import ConfigError
from recognition.distributed import Ranks
from recognition.parse import load_config
from tests.recognition.classifiers.test_class_pool import CLASSES, Net, batch

TAKEN = torch.tensor(True)

ROOT = Path(__file__).parents[3]
STEPS, PER_RANK = 6, 12


def batches(world: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    return [[batch(generator, PER_RANK) for _ in range(world)] for _ in range(STEPS)]


def joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ranks' batches as one batch: all halves x, then all halves y."""
    halves = [[t.chunk(2) for t in part] for part in parts]
    images, labels = (
        torch.cat([part[i][half] for half in (0, 1) for part in halves]) for i in (0, 1)
    )
    return images, labels


def train(
    forward: nn.Module,
    net: nn.Module,
    classifier: ClassPoolClassifier,
    steps: list[tuple[torch.Tensor, torch.Tensor]],
) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for images, labels in steps:
        classifier.before_step(0.1)
        loss = classifier(forward, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        classifier.after_step(TAKEN)
        losses.append(loss.item())
    return losses


def make(net: nn.Module, ranks: Ranks, batch_size: int, head_name: str) -> ClassPoolClassifier:
    head = find_part("recognition.heads", head_name).build(scale=32.0)
    return build(
        backbone=net,
        classes=CLASSES,
        head=head,
        ranks=ranks,
        batch_size=batch_size,
        size=15,
        ema_decay=0.9,
    ).double()


def start() -> Net:
    torch.manual_seed(0)
    return Net().double()


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    for head in part_names("recognition.heads"):
        net = start()
        classifier = make(net, Ranks(rank, world), PER_RANK, head)
        losses = train(
            DistributedDataParallel(net), net, classifier, [step[rank] for step in batches(world)]
        )
        result = {"losses": losses, "net": net.state_dict(), "classifier": classifier.state_dict()}
        torch.save(result, f"{folder}/{head}_{rank}.pt")
    check_equal(classifier.pool, Ranks(rank, world))
    classifier.pool.features[0, 0] += rank
    with pytest.raises(RuntimeError, match="gallery features differ"):
        check_equal(classifier.pool, Ranks(rank, world))

    # Leave without tearing Python down: a thread of gloo may still hold the tensors of the last
    # collective, and to free them while the interpreter ends aborts the process now and then.
    os._exit(0)


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Heads with random margins or running averages see the probes of both ranks."""
    spawn(work, (2, str(tmp_path)), 2)
    for head in part_names("recognition.heads"):
        results = [
            torch.load(tmp_path / f"{head}_{rank}.pt", weights_only=True) for rank in range(2)
        ]
        net = start()
        classifier = make(net, Ranks(), 2 * PER_RANK, head)
        losses = train(net, net, classifier, [joined(step) for step in batches(2)])
        assert results[0]["losses"] == results[1]["losses"]
        torch.testing.assert_close(
            torch.tensor(results[0]["losses"]), torch.tensor(losses), rtol=1e-9, atol=1e-9
        )
        for name, mine, theirs in (
            ("net", net.state_dict(), results[0]["net"]),
            ("classifier", classifier.state_dict(), results[0]["classifier"]),
        ):
            for key, value in mine.items():
                close = (
                    {"rtol": 1e-9, "atol": 1e-9}
                    if value.is_floating_point()
                    else {"rtol": 0, "atol": 0}
                )
                torch.testing.assert_close(theirs[key], value, **close, msg=f"{head} {name} {key}")
        assert classifier.pool.features[:, classifier.pool.stamps >= 0].isfinite().all()


RUN = """
data: {train: "synthetic:identities=30,images=2", size: 32, threads: 1}
backbone: {name: iresnet, depth: 18, width: 4, embedding: 16}
head: {name: cosface, margin: 0.3, scale: 16}
classifier: {name: class_pool, size: 0.5}
optim: {lr: 0.05, batch_size: 12, epochs: 1}
scheduler: {name: polynomial, warmup_steps: 2}
run: {log_steps: 1, checkpoint_steps: 4, device: cpu, keep: 100}
"""


def config_file(folder: Path) -> Path:
    tree = yaml.safe_load(RUN)
    tree["run"]["output"] = str(folder / "run")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def final_state(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The states of the backbone and of each rank's classifier."""
    newest = checkpoint.newest(folder / "run" / "checkpoints")
    assert newest is not None
    shared, local = checkpoint.load(newest)
    assert shared["progress"]["step"] > 4
    return [shared["backbone"], *(part["classifier"] for part in local)]


def test_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """The checkpoint is in the middle of an epoch, with gallery network, pool and both loaders."""
    path = config_file(tmp_path)
    experiment.run(load_config(path), str(path))
    whole = final_state(tmp_path)
    for later in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    experiment.run(load_config(path), str(path), resume=True)
    for before, after in zip(whole, final_state(tmp_path), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_two_processes_train_in_fp16_under_accumulation(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [
        "--config",
        str(config_file(tmp_path)),
        "run.precision=fp16",
        "optim.accumulation=2",
        "optim.epochs=3",
    ]
    command = [sys.executable, *torchrun, "train.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    _, first, second = final_state(tmp_path)
    pools = [
        {key: value for key, value in state.items() if key.startswith("pool.")}
        for state in (first, second)
    ]
    assert pools[0]["pool.clock"] > 0
    assert all(torch.equal(pools[0][key], pools[1][key]) for key in pools[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classifier.size=5", "smallest size that fits is 6"),
        ("optim.batch_size=16", "optim.batch_size: found 16.*of 6, such as 12"),
        ("optim.batch_size=120", "optim.batch_size: found 120, expected 90 or less.*has only 30"),
        ("data.order=block", "data.order: found 'block'"),
        ("classifier.image_weight=2", "classifier.image_weight: .*2"),
        ("classifier.outside=far", "classifier.outside: found 'far'"),
    ],
)
def test_impossible_pools_are_refused_before_training(
    tmp_path: Path, override: str, message: str
) -> None:
    path = config_file(tmp_path)
    with pytest.raises(ConfigError, match=message):
        experiment.run(load_config(path, [override]), str(path))
