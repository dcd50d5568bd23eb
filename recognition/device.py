"""The device of a run, its precision, and how models and images lie in its memory."""

import os

import torch
from torch import nn

from recognition.config import Config, ConfigError, RunConfig
from recognition.distributed import Launch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(config: Config, source: str, launch: Launch | None = None) -> torch.device:
    """The device of `run.device`, where `auto` prefers cuda to mps to cpu.

    launch: how the process was started, alone by default. The k-th process of a machine gets its
    k-th GPU. Raises ConfigError where this machine does not have the device, or a GPU for each
    process.
    """
    try:
        kind = kind_of_device(config.run.device)
    except ValueError as error:
        raise ConfigError(f"{source}: run.device: {error}") from None
    return (
        torch.device(kind, _gpu(source, launch or Launch()))
        if kind == "cuda"
        else torch.device(kind)
    )


def kind_of_device(asked: str) -> str:
    """`asked` (cpu, cuda or mps), or for auto the best kind that this machine has.

    Raises ValueError for a kind that it does not have.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    found = [kind for kind, is_here in here.items() if is_here]
    if asked != "auto" and asked not in found:
        raise ValueError(f"found {asked!r}, but this machine has only {', '.join(found)}; use auto")
    return found[0] if asked == "auto" else asked


def _gpu(source: str, launch: Launch) -> int:
    """Number of this process's GPU, of those that it can see."""
    count = torch.cuda.device_count()
    if count == 1 and launch.local_world > 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return 0  # whoever started the processes gave each its own GPU, as Slurm may do
    if launch.local_world > count:
        raise ConfigError(
            f"{source}: run.device: {launch.local_world} processes were started on a machine with "
            f"{count} GPU(s); use --nproc-per-node={count}, or run.device=cpu"
        )
    return launch.local_rank


def prepare_device(run: RunConfig, device: torch.device) -> None:
    """Set how torch computes on CUDA in this process, as `run` says. Call it before the first use.

    Other devices have no such settings.
    """
    if device.type != "cuda":
        return
    # Segments that grow leave fewer gaps, where sizes change: with the sample, and in evaluation.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # It would also fill every new tensor; nothing here reads memory that it did not write.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # All batches have one shape, so the fastest convolution is sought once.
    torch.backends.cudnn.benchmark = not run.deterministic
    allow_tf32(run.tf32 or run.precision != "fp32")
    torch.cuda.set_device(device)


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions may round their inputs to TF32 on CUDA."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of `run.precision`; it does nothing for fp32."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def place_backbone(backbone: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The backbone on its device in the layout of `run.channels_last`.

    Training and a model that is loaded later run the same kernels, because both come through here.
    """
    return backbone.to(device).to(memory_format=_layout(channels_last))


def lay_out(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Images (B,3,H,W) in the layout of `run.channels_last`; they are copied only if need be."""
    return images.contiguous(memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
