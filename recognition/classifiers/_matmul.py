"""Matrix products in float32 or bfloat16."""

from typing import Literal

import torch

FloatName = Literal["float32", "bfloat16"]
DTYPES: dict[FloatName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def matmul(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b in the dtype of a.

    With dtype bfloat16 the inputs are rounded to it, and on a CPU the product as well.
    """
    if dtype != torch.bfloat16:
        return a @ b
    a_rounded, b_rounded = a.to(torch.bfloat16), b.to(torch.bfloat16)
    if a.is_cuda:
        return torch.mm(a_rounded, b_rounded, out_dtype=torch.float32)
    return (a_rounded @ b_rounded).to(a.dtype)
