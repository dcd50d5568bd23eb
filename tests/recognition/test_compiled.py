"""A backbone is compiled where that is possible, and says so where it is not."""

import logging

import pytest
import torch
from torch._inductor.exc import TritonMissing

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


def test_without_triton_the_backbone_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch.compile raises on a GPU; it is no BackendCompilerFailed."""

    def refuses(images: torch.Tensor) -> torch.Tensor:
        raise TritonMissing(first_useful_frame=None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuses)
    call = compiled(torch.relu, "default")
    with caplog.at_level(logging.WARNING):
        assert call(torch.tensor(-1.0)) == 0
        assert call(torch.tensor(2.0)) == 2
    (told,) = (record.getMessage() for record in caplog.records)
    assert "triton" in told.lower()
