"""Stage ``select``: which layers carry the safety behaviour, by the contrast of activations.

A layer's contribution at the last token of a prompt is ``c = h_out - h_in`` (d,). Between the aligned model and a
degraded one it shifts by ``s = |c_a - c_d| / |c_a|``. The layer's score is the mean shift on harmful prompts less that
on benign ones, over all surrogates, at least 0: what moves on harmful prompts only (SafeGene, arXiv 2606.06519).
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safegene.checkpoints.checkpoint import layer_of, open_checkpoint
from safegene.checkpoints.sources import local_checkpoint
from safegene.datasets.prompts import read_prompts
from safegene.errors import CheckpointError
from safegene.models.device import default_device, threads_for
from safegene.models.generation import encode_chat, left_padded
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import low_rank_hooks
from safegene.repair.selection import new_selection
from safegene.repair.shots import evenly_spaced
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import read_surrogates, read_vector
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import FetchParams, SelectParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
BATCH = 32


def select(
    *,
    aligned: Path,
    degraded: Path,
    vector: Path,
    prompts: Path,
    out: Path,
    params: SelectParams | None = None,
    limits: FetchParams | None = None,
) -> Manifest:
    """Score every layer and keep those that ``params`` asks for; a layer without factors cannot be kept.

    Where the family's degraded models are the user's own checkpoints, ``W_aligned - vector`` stands for them.

    Raises:
        CheckpointError: no layer tells aligned from degraded.

    Example:
        >>> manifest = safegene.select(
        ...     aligned=ws.aligned, degraded=ws.degraded, vector=ws.vector, prompts=ws.prompts, out=ws.selection
        ... )
        >>> manifest.facts
        {'kept': 2, 'layers': 4}
    """
    params = params or SelectParams()
    root = local_checkpoint(aligned, limits).root
    held = read_vector(vector)
    changes = read_surrogates(degraded) or {"vector": {name: one.scaled(-1.0) for name, one in held.factors.items()}}
    safety = read_prompts(prompts / "safety.jsonl")
    asked = [
        row.prompt for row in evenly_spaced(safety.where(kind=("harmful", "wrapped"), split="fit"), params.prompts)
    ]
    plain = [
        row.prompt for row in evenly_spaced(safety.where(kind=("lookalike", "generic"), split="fit"), params.prompts)
    ]
    with threads_for(open_checkpoint(root).parameters):
        model, tokenizer = load_model(root, device=default_device()), load_tokenizer(root)
        rows = [[encode_chat(tokenizer, text) for text in texts] for texts in (asked, plain)]
        found = activation_shifts(model, rows[0], changes), activation_shifts(model, rows[1], changes)
    scores = {layer: max(0.0, harm - benign) for layer, (harm, benign) in enumerate(zip(*found, strict=True))}
    usable = {layer for name in held.factors if (layer := layer_of(name)) is not None}
    kept = keep_layers(params, {layer: score for layer, score in scores.items() if layer in usable})
    log.info("layers kept: %s", ", ".join(map(str, kept)))
    inputs: dict[str, Path | str] = {
        "aligned": aligned,
        "degraded": degraded,
        "vector": vector,
        "safety.jsonl": safety.digest,
    }
    with write_artefact(out, stage="select", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        (draft.path / "selection.json").write_bytes(new_selection(scores, kept).content)
        (draft.path / "scores.csv").write_text(_table(scores, found, kept), encoding="utf-8")
        draw_scores(scores, kept, draft.path / "scores.png")
        draft.facts.update(kept=len(kept), layers=len(scores))
    return draft.done


def keep_layers(params: SelectParams, scores: Mapping[int, float]) -> list[int]:
    """Layers kept, ascending: the ``top_layers``, else those with at least ``threshold`` of the largest score.

    Raises:
        CheckpointError: every score is 0, or no early layer reaches the threshold.
    """
    top = max(scores.values(), default=0.0)
    if top <= 0.0:
        raise CheckpointError(
            "expected a layer whose activations shift more on harmful than on benign prompts, got none",
            remedy="degrade further, or use more varied prompts",
        )
    early = [layer for layer in sorted(scores) if layer < max(1.0, params.depth * (1 + max(scores)))]
    if params.top_layers is not None:
        return sorted(sorted(early, key=lambda layer: (-scores[layer], layer))[: params.top_layers])
    kept = [layer for layer in early if scores[layer] >= params.threshold * top]
    if not kept:
        raise CheckpointError(
            f"expected a layer in the first {params.depth:.0%} of the model with {params.threshold:.0%} of the largest "
            f"contrast, got none of {len(early)}",
            remedy="raise select.depth, or lower select.threshold",
        )
    return kept


def activation_shifts(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], changes: Mapping[str, Patch]
) -> list[float]:
    """Per layer, the mean of ``|c_a - c_d| / |c_a|`` over prompts and degraded models.

    Args:
        model: the aligned model; each change is added beside its weights, which bf16 would round away in them.
        rows: token ids of the prompts, up to the assistant's turn.
        changes: name -> factors of ``W_degraded - W_aligned``.
    """
    before = layer_contributions(model, rows)
    total = torch.zeros(before.shape[0], dtype=torch.float64)
    for change in changes.values():
        with low_rank_hooks(model, change, dict.fromkeys(change, torch.ones(()))):
            after = layer_contributions(model, rows)
        total += ((before - after).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)).double().mean(dim=1)
    return [float(value) / len(changes) for value in total]


@torch.no_grad()
def layer_contributions(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> Tensor:
    """(layers, prompts, d): what each layer adds to the residual stream at each prompt's last token, float32."""
    found = []
    for start in range(0, len(rows), BATCH):
        ids, mask = left_padded(rows[start : start + BATCH], 0)
        places = (mask.cumsum(1) - 1).clamp_min(0)
        with _watched(model) as seen:
            model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=places.to(model.device),
                logits_to_keep=1,
                use_cache=False,
            )
        found.append(torch.stack([seen[layer] for layer in sorted(seen)]))
    return torch.cat(found, dim=1)


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Layer -> (batch, d) contribution at the last position, filled by every forward pass inside the block."""
    seen: dict[int, Tensor] = {}
    layers = model.get_submodule("model.layers")

    def watch(at: int, layer: nn.Module) -> "torch.utils.hooks.RemovableHandle":
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            after = output[0] if isinstance(output, tuple) else output
            seen[at] = (after[:, -1] - inputs[0][:, -1]).float().cpu()

        return layer.register_forward_hook(hook)

    handles = [watch(at, layer) for at, layer in enumerate(layers.children())]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _table(scores: Mapping[int, float], found: tuple[list[float], list[float]], kept: Sequence[int]) -> str:
    text = io.StringIO()
    text.write("layer,score,harmful_shift,benign_shift,kept\n")
    for layer, score in scores.items():
        text.write(f"{layer},{score:.6f},{found[0][layer]:.6f},{found[1][layer]:.6f},{int(layer in kept)}\n")
    return text.getvalue()


def draw_scores(scores: Mapping[int, float], kept: Sequence[int], path: Path) -> None:
    """A bar per layer, the kept ones filled; no clock in the file, so equal scores give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar(list(scores), list(scores.values()), color=["#2a6f97" if n in kept else "#d0d7de" for n in scores])
    axes.set(
        xlabel="layer", ylabel="shift on harmful\nless on benign", title=f"{len(kept)} of {len(scores)} layers kept"
    )
    axes.spines[["top", "right"]].set_visible(False)
    if len(scores) <= 24:
        axes.set_xticks(list(scores))
    figure.savefig(path, metadata={"Software": None})
