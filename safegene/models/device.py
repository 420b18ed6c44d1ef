"""The device of tensors, and the number of threads of a computation."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import psutil
import torch

from safegene.errors import ParamsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def default_device() -> str:
    """``SAFEGENE_DEVICE`` (such as ``cpu`` or ``cuda:1``), else ``cuda`` where it is available, else ``cpu``.

    Raises:
        ParamsError: ``SAFEGENE_DEVICE`` names a CUDA device, and none is available.
    """
    setting = os.environ.get("SAFEGENE_DEVICE", "auto")
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if setting.startswith("cuda") and not torch.cuda.is_available():
        raise ParamsError(f"expected a CUDA device for SAFEGENE_DEVICE={setting}, got none", remedy="set it to cpu")
    return setting


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    """One thread: a fixed order of sums, so equal bytes, and a faster LAPACK on a busy machine."""
    return threads(1)


GPU_SHARE = 0.8  # of a GPU's free memory for weights; activations, keys and values need the rest


def place_weights(device: str, size: int, *, quantised: bool = False) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that say where weights go: none for a CPU, else a device map of accelerate.

    ``cuda`` is one GPU where `GPU_SHARE` of its free memory holds the weights. Otherwise layers are spread over all
    GPUs, and what they do not hold over the main memory, from which it is brought layer by layer.

    Args:
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; a device with a number is used alone.
        size: bytes of the weights.
        quantised: whether they are quantised, for which a CPU needs a device map too.
    """
    if device == "cpu":
        return {"device_map": {"": "cpu"}} if quantised else {}
    if device != "cuda":
        return {"device_map": {"": device}}
    gpus = range(torch.cuda.device_count())
    free: dict[int | str, int] = {gpu: int(GPU_SHARE * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
    first = torch.cuda.current_device()
    if size <= free[first]:
        return {"device_map": {"": first}}
    return {"device_map": "auto", "max_memory": free | {"cpu": int(psutil.virtual_memory().available)}}


def free_memory() -> int:
    """Bytes that `place_weights` can give to weights on the default device, the main memory included."""
    free, device = int(psutil.virtual_memory().available), default_device()
    if device.startswith("cuda"):
        gpus = range(torch.cuda.device_count()) if device == "cuda" else [torch.device(device).index]
        on_gpus = sum(int(GPU_SHARE * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus)
        return on_gpus + (free if device == "cuda" else 0)
    return free


SMALL_MODEL = 20_000_000  # parameters; smaller models run slower with a second thread (measured on the tiny family)


def threads_for(parameters: int) -> AbstractContextManager[object]:
    """One thread for a model of fewer than `SMALL_MODEL` parameters, else torch's default."""
    return one_thread() if parameters < SMALL_MODEL else nullcontext()


def bf16_autocast(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """Products in bf16 for training steps of an fp32 model, where the CPU supports them and the model is not small.

    Weights, coefficients and optimiser stay in fp32. On SmolLM2-135M with one core with AVX512-BF16, a forward and
    backward pass of 12 x 40 tokens takes 1.0 s, and 2.5 s in fp32. Losses that are compared are measured in fp32.
    """
    small = model.num_parameters() < SMALL_MODEL
    if small or model.device.type != "cpu" or model.dtype != torch.float32 or not _multiplies_bf16():
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # the cache would hold outdated weights


def _multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
