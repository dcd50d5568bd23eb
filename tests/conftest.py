"""One thread per process, and no GPU but for the tests that are marked `cuda`."""

import os

import pytest

# Processes that tests start read it when they import torch. With more threads, the small models of
# the tests are slow on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU, unless `pytest -m cuda` asks for its tests.

    The others compare bits and memory with those of a CPU, also where `run.device` is auto.
    """
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
