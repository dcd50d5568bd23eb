"""Two and three processes (gloo, DistributedDataParallel, uneven shards) compute what one does."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recognition.distributed import Ranks

WORKER = Path(__file__).with_name("sharded_worker.py")
NAMESPACE = runpy.run_path(str(WORKER))
VARIANTS = list(NAMESPACE["VARIANTS"])
Results = dict[str, dict[str, torch.Tensor]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def ranks_results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    """For 2 and 3 processes, what each rank wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).parents[3]
    ports = [str(free_port()), str(free_port())]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), *ports], env=environment, cwd=root
        )
        for rank in range(3)
    ]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return {
        world: [
            torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)
        ]
        for world in (2, 3)
    }


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(((one - two).norm() / two.norm()).item())


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_as_one_process(
    variant: str, world: int, ranks_results: dict[int, list[Results]]
) -> None:
    one = NAMESPACE["train"](variant, Ranks())
    ranks = [results[variant] for results in ranks_results[world]]
    for rank in ranks:
        assert relative(rank["losses"], one["losses"]) < 1e-5
        assert relative(rank["gradient"], one["gradient"]) < 1e-5
        assert relative(rank["backbone"], one["backbone"]) < 1e-5
    lengths = [len(rank["centers"]) for rank in ranks]
    assert len(set(lengths)) > 1  # 37 classes do not divide
    assert relative(torch.cat([rank["centers"] for rank in ranks]), one["centers"]) < 1e-5
