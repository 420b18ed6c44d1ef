"""The names of dtypes in ``params.yaml`` and commands."""

import torch

from safegene.errors import ParamsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_for(setting: str, where: str) -> torch.dtype:
    """The dtype that a setting names; ``auto`` is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        ParamsError: there is no such dtype.
    """
    if setting == "auto":
        return torch.float32 if where == "cpu" else torch.bfloat16
    if setting not in DTYPES:
        raise ParamsError(f"expected a dtype of auto, {', '.join(DTYPES)}, got {setting!r}")
    return DTYPES[setting]
