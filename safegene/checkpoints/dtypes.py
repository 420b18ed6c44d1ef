"""Names of dtypes, as ``params.yaml`` and commands spell them."""

import torch

from safegene.errors import ParamsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_for(setting: str, where: str) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU; otherwise the dtype named.

    Raises:
        ParamsError: no such dtype.
    """
    if setting == "auto":
        return torch.float32 if where == "cpu" else torch.bfloat16
    if setting not in DTYPES:
        raise ParamsError(f"expected a dtype of auto, {', '.join(DTYPES)}, got {setting!r}")
    return DTYPES[setting]
