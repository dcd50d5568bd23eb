"""Several processes: they train as one does, and a mistake of one ends all with one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recognition.config import ConfigError
from recognition.distributed import Launch, read_launch
from tests.recognition.ranks_worker import VARIANTS

ROOT = Path(__file__).parents[2]
Result = dict[str, dict[str, torch.Tensor]]
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Result]]:
    """What each rank of 1, 2 and 3 processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [free_port() for _ in range(2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    worker = str(Path(__file__).with_name("ranks_worker.py"))
    processes = [
        subprocess.Popen([sys.executable, worker, folder, str(rank), *ports], env=environment)
        for rank in range(3)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in (1, 2, 3)
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_of_two_and_three_processes_equal_those_of_one(
    variant: str, of_ranks: dict[int, list[Result]]
) -> None:
    alone = of_ranks[1][0][variant]
    for world in (2, 3):
        ranks = [result[variant] for result in of_ranks[world]]
        for name, value in alone.items():
            if name.startswith("rows."):
                found = torch.cat([rank[name] for rank in ranks])
            else:
                found = ranks[0][name]
                assert all(torch.equal(rank[name], found) for rank in ranks), name
            if value.is_floating_point():
                error = (found - value).norm() / value.norm().clamp_min(1e-12)
                assert error < 1e-9, (world, name)
            else:
                assert torch.equal(found, value), (world, name)


def test_the_launch_is_read_from_the_environment() -> None:
    assert read_launch({}) == Launch()
    assert read_launch({"WORLD_SIZE": "1"}) == Launch()
    assert read_launch(TORCHRUN) == Launch(3, 4, 3, 4)
    two_machines = {**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert read_launch(two_machines) == Launch(3, 4, 1, 2)


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_a_launch_lacks_is_named(missing: str) -> None:
    left = {key: value for key, value in TORCHRUN.items() if key != missing}
    with pytest.raises(ConfigError, match=rf"WORLD_SIZE=4, but no {missing}: start with torchrun"):
        read_launch(left)


def test_a_launch_that_is_no_number_is_named() -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE='many'"):
        read_launch({"WORLD_SIZE": "many"})
