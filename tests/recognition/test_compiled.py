"""A backbone is compiled where that is possible, and says so where it is not."""

import logging

import pytest
import torch

from recognition.compiled import compiled


def test_without_a_compiler_the_backbone_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "/no/compiler"))
    monkeypatch.setattr(config, "force_disable_caches", True)
    weight = torch.tensor(3.0, requires_grad=True)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return torch.relu(images * weight + 1).sum()

    call = compiled(forward, "default")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            call(torch.ones(2)).backward()
    assert weight.grad == 4
    (told,) = (record.getMessage() for record in caplog.records if "run.compile" in record.msg)
    assert told.count("\n") == 0
    assert "compiler" in told
    assert "run.compile=false" in told
