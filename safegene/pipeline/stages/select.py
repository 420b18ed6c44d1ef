"""Stage ``select``: which layers carry the safety behaviour, by the contrast of activations.

A layer's score is the mean shift of its activations, between aligned and degraded models, on harmful prompts less that
on benign ones, at least 0 (SafeGene, arXiv 2606.06519); see `safegene.repair.selection`.
"""

import logging
from pathlib import Path

from safegene.checkpoints.checkpoint import layer_of, open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.sources import local_checkpoint
from safegene.datasets.prompts import read_prompts
from safegene.models.device import default_device, threads_for
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.templates import encode_chats
from safegene.repair.selection import activation_shifts, draw_scores, keep_layers, new_selection, score_table
from safegene.repair.shots import evenly_spaced
from safegene.vectors.vector import read_surrogates, read_vector
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import FetchParams, SelectParams

log = logging.getLogger(__name__)


def select(
    *,
    aligned: Path,
    degraded: Path,
    vector: Path,
    prompts: Path,
    out: Path,
    params: SelectParams | None = None,
    limits: FetchParams | None = None,
    dtype: str = "auto",
) -> Manifest:
    """Score every layer and keep those that ``params`` asks for; a layer without factors cannot be kept.

    ``dtype`` is that of the model; ``auto`` is as stored.

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
    checkpoint = open_checkpoint(local_checkpoint(aligned, limits).root)
    root, dtype = checkpoint.root, resolve_dtype(dtype, checkpoint.specs.values())
    held = read_vector(vector)
    changes = read_surrogates(degraded) or {"vector": {name: one.scaled(-1.0) for name, one in held.factors.items()}}
    safety = read_prompts(prompts / "safety.jsonl")
    harmful = evenly_spaced(safety.where(kind=("harmful", "wrapped"), split="fit"), params.prompts)
    benign = evenly_spaced(safety.where(kind=("lookalike", "generic"), split="fit"), params.prompts)
    with threads_for(checkpoint.parameters):
        model, tokenizer = load_model(root, dtype=dtype, device=default_device()), load_tokenizer(root)
        shifts = [
            activation_shifts(model, encode_chats(tokenizer, [row.prompt for row in rows]), changes)
            for rows in (harmful, benign)
        ]
    scores = {layer: max(0.0, harm - other) for layer, (harm, other) in enumerate(zip(*shifts, strict=True))}
    usable = {layer for name in held.factors if (layer := layer_of(name)) is not None}
    kept = keep_layers(params, {layer: score for layer, score in scores.items() if layer in usable})
    log.info("layers kept: %s", ", ".join(map(str, kept)))
    inputs: dict[str, Path | str] = {"aligned": aligned, "degraded": degraded, "vector": vector}
    inputs["safety.jsonl"] = safety.digest
    chosen = params.model_dump(mode="json") | {"dtype": dtype}
    with write_artefact(out, stage="select", params=chosen, inputs=inputs) as draft:
        (draft.path / "selection.json").write_bytes(new_selection(scores, kept).content)
        (draft.path / "scores.csv").write_text(score_table(scores, shifts, kept), encoding="utf-8")
        draw_scores(scores, kept, draft.path / "scores.png", params)
        draft.facts.update(kept=len(kept), layers=len(scores))
    return draft.done
