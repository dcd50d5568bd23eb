"""Small tensors from the CPU to the device of a run, without waiting for it."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`.

    A copy from ordinary memory to a CUDA device would wait until the device has done all that was
    queued before. From pinned memory it is queued like a kernel.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
