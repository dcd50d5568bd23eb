"""Counts what makes the CPU wait for the GPU in one optimizer step, without a GPU.

    LD_PRELOAD=fake_driver.so python census.py '{"name": {"overrides": […], "backbone": false}, …}'

Each case is the quickstart's config with some overrides, and with a small linear backbone unless
`backbone` asks for that of the config. The trainer's own step runs on fake CUDA
tensors, which have shape, type and device but no numbers. Prints one JSON line: the waits of each
case by name, as texts `what file:line`, or the error in its place.
"""

import collections
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # each child would import it for seconds
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastface.schedulers
from data.types import Batch
from recognition import experiment, trainer
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.parse import load_config
from recognition.seen import Seen
from recognition.teacher_vectors import TeacherSource

ROOT = Path(__file__).parents[3]
GPU = torch.device("cuda", 0)
CLASSES = 400
SMALL = ("backbone.width=8", "run.compile=false", "data.train=unused", "optim.batch_size=12")


class Faces:
    """A set that is never read."""

    labels, num_classes = np.arange(12 * CLASSES) % CLASSES, CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        return str(index)


class Net(torch.nn.Linear):
    """A small backbone: what the real ones wait for is the same in every case."""

    embedding = 512

    def __init__(self) -> None:
        super().__init__(3, self.embedding)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.mean((2, 3)))


class Lag:
    """In place of fastface's PinnedCopy, whose event a fake tensor can't have."""

    def start(self, loss: torch.Tensor) -> None:
        assert loss.numel() == 1

    def value(self) -> float:
        return 1.0


def on_gpu(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda"


class Census(TorchDispatchMode):
    """Notes what waits, and answers in its place so that the step goes on.

    A tensor that was pinned is known by its storage.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: collections.Counter[str] = collections.Counter()
        self.pinned: list[torch.UntypedStorage] = []

    def note(self, what: str) -> None:
        # The innermost line of the product; a line of torch alone is named by nothing.
        own = [
            f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if frame.filename.startswith(f"{ROOT}/")
            and "/tests/" not in frame.filename
            and "/.venv/" not in frame.filename
        ]
        self.waits[f"{what} {own[-1]}" if own else what] += 1

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place of Tensor.pin_memory, which fake tensors lack."""
        copy = tensor.clone()
        self.pinned.append(copy.untyped_storage())
        return copy

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return any(tensor.untyped_storage()._cdata == known._cdata for known in self.pinned)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in ("_to_copy", "copy_"):
            self._see_copy(name, args, kwargs)
        elif name == "_local_scalar_dense":
            return self._number(args[0])
        elif name.startswith("_fused_"):
            return None  # an optimizer's kernel, which fake tensors lack, changes tensors in place
        elif name in ("is_nonzero", "equal") and on_gpu(args[0]):
            self.note(name)
            return True
        elif name in ("nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"):
            if on_gpu(args[0]):  # how many there are is known only on the GPU
                self.note(name)
                raise RuntimeError(f"{name}: the census does not go on after it")
            if name == "nonzero":
                return torch.empty(len(args[0]) // 2, args[0].dim(), dtype=torch.int64)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if masks and on_gpu(args[0]):
                self.note("boolean mask")
                raise RuntimeError("boolean mask: the census does not go on after it")
            if masks and name == "index":
                return func(args[0], [_half(i) for i in args[1]])
            if masks:
                return args[0]
        return func(*args, **kwargs)

    def _see_copy(self, name: str, args: Any, kwargs: Any) -> None:
        for tensor in args:
            # A tensor that was made of a known number would really be copied.
            if getattr(tensor, "constant", None) is not None:
                tensor.constant = None
        source = args[0] if name == "_to_copy" else args[1]
        target = kwargs.get("device") if name == "_to_copy" else args[0].device
        if target is None or not isinstance(source, torch.Tensor):
            return
        kinds = {torch.device(target).type, source.device.type}
        asked = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        queued = asked and (source.device.type != "cpu" or self._is_pinned(source))
        if len(kinds) == 2 and "cuda" in kinds and not queued:
            self.note(f"copy from {source.device.type}")

    def _number(self, tensor: torch.Tensor) -> bool | int | float:
        if on_gpu(tensor):
            self.note("item")
            return False if tensor.dtype == torch.bool else 0.0
        return True if tensor.dtype == torch.bool else 1


def _half(index: torch.Tensor | None) -> torch.Tensor | None:
    if index is None or index.dtype != torch.bool:
        return index
    return torch.zeros(max(index.numel() // 2, 1), dtype=torch.int64)


def apply_without_swapping(
    module: torch.nn.Module, function: Callable[..., torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """In place of Module._apply, which changes parameters in place as fake tensors can't be."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            moved = function(parameter.detach())
            module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def plain_index(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """tensor[index] by dispatched operations; torch's own would set the current CUDA device."""
    view, tensors = _sliced(tensor, index)
    return torch.ops.aten.index.Tensor(view, tensors) if tensors else view


def put_index(tensor: torch.Tensor, index: Any, values: Any, census: Census) -> None:
    """tensor[index] = values, likewise."""
    view, tensors = _sliced(tensor, index)
    if not isinstance(values, torch.Tensor):
        if tensors:  # torch makes a tensor of it on the CPU (THPVariable_setitem)
            census.note("copy of a number")
        values = torch.full((), values, dtype=view.dtype, device=view.device)
    if tensors:
        torch.ops.aten.index_put_.default(view, tensors, values.to(view.dtype))
    else:
        view.copy_(values)


def _sliced(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The view by the slices, integers and None of an index, and its tensors by dimension."""
    index = index if isinstance(index, tuple) else (index,)
    assert Ellipsis not in [i for i in index if not isinstance(i, torch.Tensor)]
    dim, found = 0, {}
    for one in index:
        if one is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(one, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, one.start, one.stop, one.step or 1)
        elif isinstance(one, int):
            tensor = tensor.select(dim, one)
            continue
        else:
            found[dim] = one
            dim += one.dim() - 1 if one.dtype == torch.bool else 0
        dim += 1
    return tensor, [found.get(d) for d in range(max(found) + 1)] if found else []


def made_of_numbers(plain: Callable[..., torch.Tensor], census: Census) -> Callable[..., Any]:
    """torch.tensor or torch.as_tensor: with numbers and a CUDA device they copy, and wait."""

    def make(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda" or isinstance(data, torch.Tensor):
            return plain(data, device=device, **kwargs)
        census.note("copy of numbers")
        return torch.empty(np.shape(data), device=device, dtype=kwargs.get("dtype"))

    return make


@contextmanager
def fake_cuda(census: Census) -> Iterator[None]:
    """Fake tensors on a CUDA device that torch believes in."""
    get, put = torch.Tensor.__getitem__, torch.Tensor.__setitem__

    def getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
        return plain_index(tensor, index) if on_gpu(tensor) else get(tensor, index)

    def setitem(tensor: torch.Tensor, index: Any, values: Any) -> None:
        if on_gpu(tensor):
            put_index(tensor, index, values, census)
        else:
            put(tensor, index, values)

    replaced: list[tuple[Any, str, Any]] = [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (torch.cuda, "manual_seed_all", lambda seed: None),
        (torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30)),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.nn.Module, "_apply", apply_without_swapping),
        (torch.Tensor, "pin_memory", lambda tensor: census.pin(tensor)),
        (torch.Tensor, "__getitem__", getitem),
        (torch.Tensor, "__setitem__", setitem),
        (torch, "tensor", made_of_numbers(torch.tensor, census)),
        (torch, "as_tensor", made_of_numbers(torch.as_tensor, census)),
        (fastface.schedulers, "PinnedCopy", Lag),
    ]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    with FakeTensorMode(allow_non_fake_inputs=True), census:
        yield


def waits_of(config: Config) -> dict[str, int]:
    """What waits in the second step: the first one makes what later steps have."""
    census = Census()
    with fake_cuda(census):
        source = None
        if config.teacher.given:
            file = Path(str(config.teacher.vectors))
            np.save(file, np.ones((12, 24), np.float16))
            source = TeacherSource("", 24, None, file)
        parts = experiment.build_parts(config, Faces(), GPU, Ranks(), source=source)
        progress, size = trainer.Progress(), config.data.size
        for _ in range(2):
            census.waits.clear()
            batches = []
            for micro in range(config.optim.accumulation):
                images = torch.empty(12, size, size, 3, dtype=torch.uint8, device=GPU)
                labels = torch.zeros(12, dtype=torch.int64, device=GPU)
                sampled = parts.loader.draw is not None and micro == 0
                sample = torch.zeros(64, dtype=torch.int64, device=GPU) if sampled else None
                numbers = np.arange(12)
                batches.append(Batch(images.permute(0, 3, 1, 2), labels, sample, indices=numbers))
            trainer.optimizer_step(config, parts, batches, progress, seen=Seen())
        return dict(census.waits)


def in_child(case: dict[str, Any]) -> Any:
    """Waits, or an error's text, from a process of its own: fake parameters outlive their step."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            config = load_config(ROOT / "configs/quickstart.yaml", [*SMALL, *case["overrides"]])
            if not case["backbone"]:
                vars(experiment)["build_backbone"] = lambda config: Net()
            found: Any = waits_of(config)
        except Exception as error:
            found = "".join(traceback.format_exception(error)[-3:])
        with os.fdopen(writing, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text) if text else "the process died"


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    print(json.dumps({name: in_child(case) for name, case in cases.items()}))
