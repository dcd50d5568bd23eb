"""Several processes: they train as one does, and a mistake of one ends all with one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recognition import experiment
from recognition.config import ConfigError
from recognition.device import choose_device
from recognition.distributed import Launch, ranks_of_this_run, read_launch
from recognition.parse import load_config
from tests.recognition.ranks_worker import VARIANTS
from train import main

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, for what only counts them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_each_process_of_a_machine_gets_its_own_gpu(gpus: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs/quickstart.yaml")
    assert choose_device(config, "a.yaml") == torch.device("cuda", 0)
    found = [choose_device(config, "a.yaml", Launch(rank, 4, rank % 2, 2)) for rank in range(4)]
    assert found == [torch.device("cuda", index) for index in (0, 1, 0, 1)]
    with pytest.raises(ConfigError, match=r"3 processes were .* with 2 GPU\(s\); .*per-node=2"):
        choose_device(config, "a.yaml", Launch(0, 3, 0, 3))

    # Slurm may show each process only its own GPU.
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    gpus.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert choose_device(config, "a.yaml", Launch(1, 2, 1, 2)) == torch.device("cuda", 0)


def test_a_torch_without_nccl_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with (
        pytest.raises(ConfigError, match="2 processes on cuda: this torch can't connect them"),
        ranks_of_this_run(torch.device("cuda", 0), Launch(0, 2, 0, 2)),
    ):
        pass


@pytest.mark.parametrize(
    ("of_rank_1", "message"),
    [
        ("optim.lr=0.5", "the config of rank 1 differs from that of rank 0: start all"),
        ("data.train=synthetic:identities=6,images=11", "data.train of rank 1 differs from"),
        ("data.train=nowhere", "error: rank 1: a.yaml: data.train: nowhere: no such file"),
    ],
)
def test_ranks_that_differ_stop_with_one_line(of_rank_1: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text())
    port = free_port()
    plain = ["data.train=synthetic:identities=6,images=10", "optim.batch_size=4", "run.output=r"]
    started = []
    for rank in range(2):
        launch = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **launch, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "train.py"), "--config", "a.yaml", *plain]
        started.append(
            subprocess.Popen(
                [*command, *([of_rank_1] if rank else [])],
                env=environment,
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert message in errors[0]
    assert len(errors[0].splitlines()) == 1
    assert errors[1] == ""
    assert not (tmp_path / "r").exists()


def test_too_little_memory_is_one_line_with_what_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(experiment, "run", run)
    command = ["--config", str(ROOT / "configs/quickstart.yaml"), "optim.batch_size=1024"]
    assert main([*command, "run.device=cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "quickstart.yaml: out of memory" in line
    assert "optim.batch_size=512 optim.accumulation=2 (" in line
