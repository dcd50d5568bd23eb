"""Matrix products in float32, bfloat16 or float16."""

from typing import Literal

import torch

FloatName = Literal["float32", "bfloat16"]
"""Number types in which momentum may be stored."""
MatmulName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_type(name: MatmulName, precision: str, device: str) -> torch.dtype:
    """The type to which the inputs of a product are rounded.

    "auto" follows `run.precision` on CUDA, where such products are summed in float32. Elsewhere it
    is float32, because the product itself would be rounded.
    """
    if name != "auto":
        return DTYPES[name]
    return OF_PRECISION[precision] if device == "cuda" else torch.float32


def matmul(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a @ b in the dtype of a.

    With dtype bfloat16 or float16 the inputs are rounded to it. The sum is float32 on CUDA;
    elsewhere the product is rounded as well.
    """
    if dtype == torch.float32:
        return a @ b
    a_rounded, b_rounded = a.to(dtype), b.to(dtype)
    if a.is_cuda:
        return torch.mm(a_rounded, b_rounded, out_dtype=torch.float32)
    return (a_rounded @ b_rounded).to(a.dtype)
