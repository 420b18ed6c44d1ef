"""Extraction, calibration and generation on one GPU, on an 8B-shaped model with random weights, against its bandwidth.

``python -m benchmarks.engine.gpu [--toy] [FOLDER]`` writes ``gpu.json`` into FOLDER, by default ``$OUT``, else the
working directory. It needs no network and under 10 minutes on a GPU of 80 GB or more. ``--toy`` runs a small shape, on
the CPU where there is no GPU.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.engine.memory import prompts, tokenizer
from benchmarks.results import Figure, markdown, new_figure
from safegene.models.device import default_device
from safegene.models.generation import generate
from safegene.models.structure import structure_of
from safegene.repair.coefficients import new_coefficients
from safegene.repair.fitting import fit_coefficients
from safegene.repair.shots import make_shots
from safegene.vectors.linalg import LowRank, randomised_svd
from safegene.workspace.params import CalibrateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMMAND = "python -m benchmarks.engine.gpu"
B8: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TOY: Mapping[str, Any] = {
    **B8,
    "vocab_size": 2000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
}
RANK, STEPS = 64, 4
CHANGE, NOISE = 1e-3, 2e-4  # sizes of the planted low-rank change and of the noise on it, relative to the weights


def model_of(shape: Mapping[str, Any], device: str) -> "PreTrainedModel":
    """A Llama of that shape with random bf16 weights, made on the device."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with torch.device(device):
        config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def bandwidth(device: str, size: int) -> float:
    """Bytes a second that a copy of ``size`` bytes within the device's memory reads and writes; the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        with _timed(device) as seconds:
            target.copy_(source)
        best = max(best, 2 * size / seconds[0])
    return best


@contextmanager
def _timed(device: str) -> Iterator[list[float]]:
    """A list that holds the seconds of the block afterwards, the device's pending work included."""
    taken: list[float] = []
    _finish(device)
    start = time.perf_counter()
    yield taken
    _finish(device)
    taken.append(time.perf_counter() - start)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def extraction(model: "PreTrainedModel", device: str, copied: float) -> list[Figure]:
    """Sketch every matrix's difference to a degraded model: W, W + low-rank change + noise, both in bf16."""
    weights = {name: model.get_parameter(one.parameter) for name, one in structure_of(model).matrices.items()}
    random = torch.Generator(device).manual_seed(1)
    spent, read, worst = 0.0, 0, 0.0
    for weight in weights.values():
        out, into = weight.shape
        rank = min(8, out, into)
        up = torch.randn(out, rank, generator=random, device=device)
        down = torch.randn(rank, into, generator=random, device=device)
        noise = NOISE * torch.randn(out, into, generator=random, device=device)
        degraded = weight.float() + CHANGE * up @ down + noise
        with _timed(device) as seconds:
            found = randomised_svd(weight.float() - degraded, RANK)
        spent, read = spent + seconds[0], read + 4 * weight.numel()
        worst = max(worst, found.relative_error)
    return [
        new_figure("extraction: seconds", round(spent, 3), "s", command=COMMAND),
        new_figure(
            "extraction: reading both models, of the bandwidth",
            round(read / spent / copied, 4),
            "share",
            command=COMMAND,
        ),
        new_figure("extraction: largest relative error", round(worst, 4), "share", command=COMMAND),
    ]


def calibration(model: "PreTrainedModel", copied: float, device: str) -> list[Figure]:
    """Steps of the fit of coefficients beside every matrix, rank 8."""
    random, patch = torch.Generator().manual_seed(2), dict[str, LowRank]()
    for name, one in structure_of(model).matrices.items():
        rows, columns = one.shape
        up, down = torch.randn(rows, 8, generator=random), torch.randn(8, columns, generator=random)
        patch[name] = LowRank(0.01 * up, 0.01 * down)
    encoded = [(f"p{at}", list(range(2, 14)), list(range(3 + at % 4, 11 + at % 4))) for at in range(12)]
    shots = make_shots(model, encoded, kind="safety", response_tokens=8)
    shots += make_shots(model, encoded, kind="benign", response_tokens=8)
    params = CalibrateParams(steps=STEPS, measure_every=STEPS, batch_size=12, task_weight=0.0, safety_slack=0.0)
    with _timed(device) as seconds:
        fit_coefficients(params, model, new_coefficients(params, patch, 1e9), shots, shots)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    passes = 3 * STEPS + 2  # forward, backward and its second forward of each step; two measurements
    share = passes * weights / seconds[0] / copied
    return [
        new_figure("calibration: seconds a step", round(seconds[0] / STEPS, 3), "s", command=COMMAND),
        new_figure("calibration: reading the weights, of the bandwidth", round(share, 4), "share", command=COMMAND),
    ]


def generation(model: "PreTrainedModel", copied: float, device: str, *, batch: int, new_tokens: int) -> list[Figure]:
    """Greedy replies in one batch; every token reads the weights once."""
    words = tokenizer()
    generate(model, words, prompts(2), max_new_tokens=2, batch_size=2)  # warm up
    with _timed(device) as seconds:
        replies = generate(model, words, prompts(batch), max_new_tokens=new_tokens, batch_size=batch)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    made, longest = sum(reply.tokens for reply in replies), max(reply.tokens for reply in replies)
    share = longest * weights / seconds[0] / copied
    return [
        new_figure("generation: tokens a second", round(made / seconds[0], 1), "1/s", command=COMMAND),
        new_figure("generation: reading the weights, of the bandwidth", round(share, 4), "share", command=COMMAND),
    ]


def measure(*, toy: bool, device: str) -> list[Figure]:
    """All figures."""
    copied = bandwidth(device, (1 << 20) if toy else (4 << 30))
    model = model_of(TOY if toy else B8, device)
    found = [new_figure("memory bandwidth, by a copy", round(copied / 1e9, 1), "GB/s", command=COMMAND)]
    found += extraction(model, device, copied)
    found += calibration(model, copied, device)
    found += generation(model, copied, device, batch=4 if toy else 64, new_tokens=4 if toy else 128)
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**30
        found.append(new_figure("peak GPU memory", round(peak, 2), "GiB", command=COMMAND))
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, and write ``gpu.json``."""
    toy, folders = "--toy" in arguments, [one for one in arguments if one != "--toy"]
    device = default_device()
    if not toy and device == "cpu":
        raise SystemExit("expected a GPU, got none: run it with --toy on a CPU")
    out = Path(folders[0] if folders else os.environ.get("OUT", "."))
    found = measure(toy=toy, device=device)
    print(markdown(found))
    (out / "gpu.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
