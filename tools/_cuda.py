"""What a CUDA process needs besides its tensors. docs/benchmarks/memory-planner.md has the sources.

None of these figures was measured by this project.
"""

from collections.abc import Iterable

MIB = 1 << 20
CONTEXT = 600_000_000
"""The driver's context and the loaded kernels, before the first tensor."""
WORKSPACE = 128 * MIB
"""cuBLAS and cuBLASLt have a workspace each, in the forward and in the backward thread: 32 MiB on
Hopper, less on older cards."""
NCCL = 256 * MIB
"""Buffers of NCCL's channels, with several ranks."""
COMPILED = 0.9
"""What torch.compile keeps of the activations in bf16 and fp16, as a share of the eager ones."""


def convolution_workspace(largest: int, channels_last: bool) -> int:
    """Bytes that cuDNN takes beside the tensors of one convolution.

    Its kernels want channels_last. In NCHW they make a copy of the input and of the output, each
    up to `largest`, the bytes of the largest activation.
    """
    return 64 * MIB + (0 if channels_last else 2 * largest)


def reserved(sizes: Iterable[int]) -> int:
    """Bytes that torch's caching allocator takes from the device for tensors of these bytes.

    A tensor takes multiples of 512 bytes. Runs ask for segments that grow (`prepare_device`): those
    of tensors up to 1 MiB by 2 MiB at a time, those of larger ones by 20 MiB.
    """
    sizes = [_up(size, 512) for size in sizes]
    small = sum(size for size in sizes if size <= MIB)
    return _up(small, 2 * MIB) + _up(sum(sizes) - small, 20 * MIB)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
