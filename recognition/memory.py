"""How much memory this process holds now, and at most so far.

The figures come from /proc/self/status. Systems without /proc have only `ru_maxrss` of getrusage,
which may count the parent's memory too, because it survives the start of a new program.
"""

import re
import resource
import sys
from pathlib import Path

import torch


def memory(device: torch.device) -> dict[str, int]:
    """What the logs show: resident memory now and, on CUDA, the largest memory so far, in bytes."""
    found = {"resident_bytes": resident_bytes()}
    if device.type == "cuda":
        found["cuda_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def resident_bytes() -> int:
    """Resident memory now, in bytes."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The largest resident memory so far, in bytes."""
    return _status("VmHWM")


def _status(key: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(rf"{key}:\s+(\d+) kB", status.read_text())[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
