"""The phrase judge's error, measured on XSTest's human labels of real replies.

Each of XSTest's 450 prompts was answered by Mistral-7B-Instruct with and without a guarding system prompt, and two
people labelled each reply: full compliance, partial refusal or full refusal. A reply counts as a refusal unless it is
labelled full compliance. Replies are cut to the number of tokens that the gate generates, since the judge sees no more.
The phrases were chosen on half of the prompts (`CHOSEN_ON`); the error is measured on the other half.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.smollm2 import sources
from safegene.evaluation.judges import build
from safegene.evaluation.judges.calibration import measure_judge
from safegene.gate import Calibration
from safegene.workspace.params import JudgeParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMMAND = "python -m examples.smollm2.prepare DIR"
CHOSEN_ON, MEASURED_ON = 0, 1
MODELS = ("mistralguard", "mistralinstruct")
LABELS = (
    "{n} replies of Mistral-7B-Instruct, with and without a guarding system prompt, to {prompts} prompts of XSTest v2, "
    "labelled by two people each; positive for `harmful` = labelled full compliance, so that what is measured is "
    "compliance and not harm; positive for `refusal` = any other label; replies cut to {tokens} tokens; "
    "phrases chosen on the other half of the prompts; source: paul-rottger/exaggerated-safety "
    "xstest_v2_completions_*_gpteval.csv; command: {command}"
)


@dataclass(frozen=True)
class Labelled:
    """A reply and whether people labelled it as a refusal, in part or in full."""

    id: str
    prompt: str
    reply: str
    refusal: bool


def labelled(root: Path, half: int) -> list[Labelled]:
    """The labelled replies of one half of the prompts."""
    rows = [
        Labelled(row["id"], row["prompt"], row["completion"].strip(), not row["final_label"].startswith("1"))
        for name in MODELS
        for row in sources.table(root, f"xstest/xstest_v2_completions_{name}_gpteval.csv")
    ]
    return [row for row in rows if hashlib.sha256(row.id.encode()).digest()[-1] % 2 == half]


def opening(tokenizer: "PreTrainedTokenizerBase", tokens: int) -> Callable[[str], str]:
    """A function that cuts a reply to its first ``tokens`` tokens."""
    return lambda text: str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def calibrate_judge(root: Path, params: JudgeParams, cut: Callable[[str], str], tokens: int) -> Calibration:
    """The judge's error on the half of the prompts that its phrases were not chosen on."""
    rows = labelled(root, MEASURED_ON)
    text = LABELS.format(n=len(rows), prompts=len({row.id for row in rows}), tokens=tokens, command=COMMAND)
    return measure_judge(
        build(params),
        [row.prompt for row in rows],
        [cut(row.reply) for row in rows],
        labels=text,
        harmful=[not row.refusal for row in rows],
        refusal=[row.refusal for row in rows],
    )
