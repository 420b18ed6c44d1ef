"""Layer selection by the contrast of activations, ``selection.json``, and the vector's factors in the layers kept.

A layer's contribution at the last token of a prompt is ``c = h_out - h_in`` (d,). Between the aligned model and a
degraded one it shifts by ``s = |c_a - c_d| / |c_a|``. The layer's score is the mean shift on harmful prompts less that
on benign ones, over all surrogates, at least 0: what moves on harmful prompts only (SafeGene, arXiv 2606.06519).
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import CheckpointError
from safegene.models.forward import decoder_layers, right_padded, run
from safegene.models.patching import low_rank_hooks
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import SafetyVector
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import SelectParams
from safegene.workspace.parsing import Strict, parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NAME = "selection.json"
BATCH = 32  # prompts per forward pass
SMALLEST_NORM = 1e-12  # in place of the norm of a contribution of zero, which is divided by
MAX_TICKS = 24  # layers up to which every bar of the picture has its number


class Selection(Strict):
    """The content of ``selection.json``.

    Attributes:
        scores: layer -> contrast of its activations, at least 0, rounded to six digits.
        kept: the layers kept, ascending.
    """

    scores: dict[str, float]
    kept: list[int]

    @property
    def content(self) -> bytes:
        """The bytes of the file: canonical JSON and a newline."""
        return canonical_json(self.model_dump()) + b"\n"


def new_selection(scores: Mapping[int, float], kept: list[int]) -> Selection:
    """The selection of the layers ``kept`` by their scores."""
    return Selection(scores={str(layer): round(score, 6) for layer, score in scores.items()}, kept=kept)


def read_selection(folder: Path) -> Selection:
    """The selection of a ``select`` artefact, after verifying every file of the artefact.

    Raises:
        ArtifactError: the artefact is incomplete.
        DigestMismatch: a file has changed.
        FormatError: the file is malformed.
    """
    read_manifest(folder, stage="select")
    path = folder / NAME
    return parse_json(Selection, path.read_bytes(), where=str(path))


def selected_matrices(vector: SafetyVector, selection: Path) -> Patch:
    """The vector's factors in the layers kept.

    Raises:
        CheckpointError: there are none.
        ArtifactError, DigestMismatch, FormatError: see `read_selection`.
    """
    kept = set(read_selection(selection).kept)
    factors = {name: change for name, change in vector.factors.items() if layer_of(name) in kept}
    if not factors:
        raise CheckpointError(
            f"expected factors in the layers kept {sorted(kept)}, got none, in {selection}",
            remedy="lower select.threshold, or raise select.top_layers or select.depth",
        )
    return factors


def keep_layers(params: SelectParams, scores: Mapping[int, float]) -> list[int]:
    """Layers kept, ascending: the ``top_layers``, else those with at least ``threshold`` of the largest score.

    Later layers than ``depth`` are kept only where no earlier one reaches the threshold, with a warning.

    Raises:
        CheckpointError: every score is 0.
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
    high = [layer for layer in sorted(scores) if scores[layer] >= params.threshold * top]
    kept = [layer for layer in early if layer in high]
    if not kept:
        share = f"{params.threshold:.0%} of the largest contrast"
        log.warning(
            "no layer in the first %.0f%% reaches %s: later layers are kept; the gate shows whether that is enough",
            100 * params.depth,
            share,
        )
    return kept or high


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
        total += ((before - after).norm(dim=-1) / before.norm(dim=-1).clamp_min(SMALLEST_NORM)).double().mean(dim=1)
    return [float(value) / len(changes) for value in total]


@torch.no_grad()
def layer_contributions(model: "PreTrainedModel", rows: Sequence[Sequence[int]]) -> Tensor:
    """(layers, prompts, d): what each layer adds to the residual stream at each prompt's last token, float32.

    Raises:
        CheckpointError: the model cannot be run, or its decoder layers cannot be told.
    """
    parts = []
    for start in range(0, len(rows), BATCH):
        ids, lengths = right_padded(rows[start : start + BATCH], model.device)
        with _watch_contributions(model, lengths - 1) as seen:
            run(model, ids, keep=1)
        parts.append(torch.stack([seen[layer] for layer in sorted(seen)]))
    return torch.cat(parts, dim=1)


@contextmanager
def _watch_contributions(model: nn.Module, last: Tensor) -> Iterator[dict[int, Tensor]]:
    """Layer -> (batch, d) contribution at the positions ``last`` (batch,), filled by every forward pass inside.

    A layer takes the residual stream as its first argument or as ``hidden_states``, and gives it back as a tensor or as
    the first of a tuple.
    """
    seen: dict[int, Tensor] = {}

    def watch(layer_number: int, layer: nn.Module) -> "torch.utils.hooks.RemovableHandle":
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Any) -> None:
            before = inputs[0] if inputs else named["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            rows, at = torch.arange(len(last), device=after.device), last.to(after.device)
            seen[layer_number] = (after[rows, at] - before.to(after.device)[rows, at]).flatten(1).float().cpu()

        return layer.register_forward_hook(hook, with_kwargs=True)

    handles = [watch(at, layer) for at, layer in enumerate(decoder_layers(model))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def draw_scores(scores: Mapping[int, float], kept: Sequence[int], path: Path, params: SelectParams) -> None:
    """A bar per layer, the kept ones filled, those beyond ``depth`` hatched, and the threshold as a line.

    There is no clock in the file, so equal arguments give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes, end = figure.subplots(), max(1.0, params.depth * len(scores))
    colours = ["#2a6f97" if n in kept else "#d0d7de" if n < end else "white" for n in scores]
    deep = ["" if n < end else "////" for n in scores]
    axes.bar(list(scores), list(scores.values()), color=colours, hatch=deep, edgecolor="#7b8592", linewidth=0.5)
    rule = f"highest {params.top_layers}"
    if params.top_layers is None:
        rule = f"at least {params.threshold:.0%} of the largest (dashed)"
        axes.axhline(params.threshold * max(scores.values()), color="#b3261e", linestyle="--", linewidth=1.0)
    if params.depth < 1.0:
        rule += f", first {params.depth:.0%} of the layers (rest hatched)"
    axes.set(xlabel="layer", ylabel="shift on harmful\nless on benign")
    axes.set_title(f"{len(kept)} of {len(scores)} layers kept: {rule}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(scores) <= MAX_TICKS:
        axes.set_xticks(list(scores))
    figure.savefig(path, metadata={"Software": None})


def score_table(scores: Mapping[int, float], shifts: Sequence[Sequence[float]], kept: Sequence[int]) -> str:
    """``scores.csv``: layer, score, mean shift on harmful and on benign prompts, and 1 where it is kept."""
    text = io.StringIO()
    text.write("layer,score,harmful_shift,benign_shift,kept\n")
    for layer, score in scores.items():
        text.write(f"{layer},{score:.6f},{shifts[0][layer]:.6f},{shifts[1][layer]:.6f},{int(layer in kept)}\n")
    return text.getvalue()
