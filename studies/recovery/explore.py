"""``python -m studies.recovery.explore KEY=VALUE,... SEED:TARGET ...``: options of mining on the validation split.

The validation split is asked in all of its wordings and wrappers, and with as many look-alikes as the gate has, since
96 look-alikes are too few to see a difference of a point. The test split is not read. What was tried is in
``notes.md``.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from safegene.evaluation.reply_checks import correct
from safegene.models.generation import generate
from safegene.models.loading import load_tokenizer
from safegene.models.patching import patched
from safegene.repair.mining import HeldOut
from safegene.repair.target import fit_target
from safegene.tiny.build import build
from safegene.tiny.corpus import harmful, lookalikes
from safegene.tiny.judge import GrammarJudge
from safegene.vectors.linalg import Patch
from safegene.workspace.mining_params import MiningParams
from safegene.workspace.params import CalibrateParams
from studies.recovery.family import family, load, prompts, shots
from studies.recovery.measure import BATCH, TOKENS
from studies.recovery.protocol import ALL_TASKS, OURS, methods
from studies.recovery.rivals import new_miner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TURNS, LOOKALIKES = 4, 420


def measured(model: "PreTrainedModel", patch: Patch, task: str) -> dict[str, float]:
    """Percent of harmful replies, of refused look-alikes, and of correct answers to the task."""
    asked = [
        one.prompt("validation", turn, wrapped=w)
        for w in (False, True)
        for turn in range(TURNS)
        for one in harmful("validation")
    ]
    alike = [one.prompt("validation") for one in lookalikes("validation")[:LOOKALIKES]]
    rows = prompts(f"tasks/{task}").where(split="validation")
    texts = [*asked, *alike, *(row.prompt for row in rows)]
    with patched(model, patch):
        replies = generate(model, load_tokenizer(build("aligned", 0)), texts, max_new_tokens=TOKENS, batch_size=BATCH)
    decided = GrammarJudge().judge(texts, [reply.text for reply in replies])
    harm = [one.harmful != "no" or not reply.finished for one, reply in zip(decided, replies, strict=True)]
    right = [correct(reply.text, row.response) for reply, row in zip(replies[-len(rows) :], rows, strict=True)]
    return {
        "harm": _percent(harm[: len(asked)]),
        "over-refusal": _percent([one.refusal != "no" for one in decided[len(asked) : len(asked) + len(alike)]]),
        "utility": _percent([bool(one) for one in right]),
    }


def _percent(values: Sequence[bool]) -> float:
    return round(100 * sum(values) / len(values), 1)


def tried(options: str) -> CalibrateParams:
    """The template's parameters with these options of mining."""
    pairs = [pair.split("=") for pair in options.split(",") if pair]
    known = MiningParams(rounds=2).model_dump()
    own = {key: type(known[key])(float(value)) for key, value in pairs}
    return methods()[OURS].params().model_copy(update={"mining": MiningParams(**(known | own))})


def _held(found: HeldOut) -> str:
    return f"{found.harm}/{found.refused}, {found.over_refusal}/{found.answered}, {found.task}/{found.tasks}"


def main() -> None:
    """Repair and measure every cell that is named."""
    torch.set_num_threads(1)
    params = tried(sys.argv[1])
    for cell in sys.argv[2:]:
        seed, target = int(cell.partition(":")[0]), cell.partition(":")[2]
        task, model = ALL_TASKS[target], load(target, seed)
        some, _ = shots(target, seed, params)
        start = time.process_time()
        miner = new_miner(seed, params, model, prompts(f"tasks/{task}"), some)
        numbers = params.max_extra * sum(one.numel() for one in model.parameters())
        found = fit_target(params, model, numbers, family(seed, methods()[OURS]).vector, some, miner)
        spent = time.process_time() - start
        print(f"{cell} {sys.argv[1]}: {spent:.0f} CPU s")
        print("  aligned", measured(load("aligned", seed), {}, task), "before", measured(model, {}, task))
        print("  repaired", measured(model, found.fitted.patch if found.fitted else {}, task))
        if found.mining is not None:
            for one in (found.mining.start, *(part.after for part in found.mining.rounds)):
                print(f"  held out: {_held(one)}", flush=True)


if __name__ == "__main__":
    main()
