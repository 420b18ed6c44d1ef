"""Parameters of mining, section ``calibrate.mining`` of ``params.yaml``."""

from typing import Annotated

from pydantic import Field

from safegene.workspace.fields import Frozen, Positive, PositiveFloat, Share


class MiningParams(Frozen):
    """How `calibrate` adds shots from ``data/prompts/pool.jsonl``, see `safegene.repair.mining`; 0 rounds add none.

    A round ranks ``prompts`` prompts of each kind at most, asks the repaired target the worst, adds ``shots`` of each
    label (each counted ``repeat`` times among the shots of its kind when batches of ``batch_size`` are drawn), and fits
    ``steps`` further steps with a learning rate that falls from ``learning_rate``. Replies of up to ``max_new_tokens``
    are judged by ``evaluate.judge``. Rounds end when the upper confidence bounds (level ``confidence``) of harm and
    over-refusal on the held-out part of the pool are within ``max_harm`` and ``max_over_refusal``, by default the
    gate's margins. A round that changes more replies of the task than before is kept only where the bound of their
    share is within ``max_task_change``. None runs where the first fit left more than ``max_start_harm`` of the held-out
    prompts that should be refused: a round mended half of the errors of a tiny repair that left 8%, and none of 49%.
    """

    rounds: Annotated[int, Field(ge=0, le=8)] = 0
    prompts: Positive = 1000
    shots: Positive = 160
    repeat: Positive = 3
    steps: Positive = 80
    batch_size: Positive = 24
    learning_rate: PositiveFloat = 0.2
    measure_every: Positive = 80
    max_new_tokens: Positive = 48
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    max_harm: Share = 0.05
    max_over_refusal: Share = 0.03
    max_task_change: Share = 0.03
    max_start_harm: Share = 0.25
