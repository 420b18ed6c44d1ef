"""``python -m examples.smollm2.prepare DIR``: prepare what ``make demo-real`` needs before the flows can run.

It makes the base model, an aligned model, three fine-tunes, the prompt and task sets, the measured error of the phrase
judge, and a workspace in DIR that uses them. Steps that were completed before are skipped.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from examples.smollm2 import models, sets, sources, texts
from examples.smollm2.models import Probe, Recipe
from examples.smollm2.sets import Row, Sets
from safegene.errors import SafegeneError
from safegene.workspace.layout import cache_folder

ALIGN = Recipe("aligned", steps=200, probe_every_steps=25)
GSM8K = Recipe("gsm8k", steps=80)
MIXED = Recipe("gsm8k-mixed", steps=80)
BANKING = Recipe("banking77", steps=120)
BARE = Recipe("banking77-bare", steps=120)
TARGETS = {GSM8K.name: "gsm8k", MIXED.name: "gsm8k", BANKING.name: "banking77"}
HARMFUL_SHARE = 0.03
GENERIC_SHARE = 0.35
STEP_SHARE = 0.4


@dataclass(frozen=True)
class Family:
    """Folders of the aligned model and of the targets, by name."""

    aligned: Path
    targets: dict[str, Path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the workspace; returns the exit code, 0 also when SAFEGENE_TEST_DATA is not set."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2.prepare", description=__doc__)
    parser.add_argument("workspace", type=Path, help="the workspace to make, such as demo-real")
    parser.add_argument("--models-only", action="store_true", help="train, but make no workspace")
    chosen = parser.parse_args(arguments)
    console = Console()
    data = os.environ.get("SAFEGENE_TEST_DATA")
    if not data:
        console.print(
            "[yellow]skipped[/] demo-real: SAFEGENE_TEST_DATA is not set. It names a folder with the public sets "
            "advbench, jailbreakbench, xstest, catqa_harmfulqa, selfinstruct_seed, gsm8k and banking77_polyai.",
            soft_wrap=True,
        )
        return 0
    try:
        _prepare(Path(data), chosen.workspace, chosen.models_only, _say(console))
    except SafegeneError as error:
        console.print(
            f"[red]error[/] {error.message}" + (f"\n  {error.remedy}" if error.remedy else ""), soft_wrap=True
        )
        return error.exit_code
    return 0


def _say(console: Console) -> Callable[[str], None]:
    start = time.monotonic()
    return lambda text: console.print(f"{time.monotonic() - start:6.0f} s  {text}", soft_wrap=True, highlight=False)


def _prepare(data: Path, folder: Path, models_only: bool, say: Callable[[str], None]) -> None:
    say("1/4 prompt and task sets")
    split = sets.build(data)
    say("2/4 the base model, SmolLM2-135M-Instruct")
    home = cache_folder() / "smollm2"
    home.mkdir(exist_ok=True)
    base = models.obtain(home, say)
    say("3/4 the aligned model and three fine-tunes")
    family = make_family(home, base, data, split, say)
    if not models_only:
        from examples.smollm2.workspace import write_workspace

        say("4/4 the workspace and the judge's measured error")
        targets = {name: (at, TARGETS[name]) for name, at in family.targets.items()}
        write_workspace(folder, data, split, family.aligned, targets, say)


def make_family(home: Path, base: Path, data: Path, split: Sets, say: Callable[[str], None]) -> Family:
    """The aligned model and the targets; those that the cache does not hold are trained."""
    aligned, own = make_aligned(home, base, split, say)
    return Family(
        aligned, {r.name: make_target(home, aligned, data, split, own, r, say) for r in (GSM8K, MIXED, BANKING)}
    )


def make_aligned(home: Path, base: Path, split: Sets, say: Callable[[str], None]) -> tuple[Path, list[Row]]:
    """The aligned model, and the replies of the base model that its training preserves."""
    own = models.replies(home, base, _align_prompts(split), say)
    safe = {goal.text for goal in split.lookalikes["align"]}
    # Look-alikes are included twice: with one copy, 15% of ordinary prompts were still refused after 125 steps.
    rows = [*refusals(split), *own, *(row for row in own if row[0] in safe)]
    aligned, measured = models.fine_tune(home, base, ALIGN, rows, _probe(split, ""), say)
    if not models.is_aligned(measured):
        say(f"  the aligned model stopped at {ALIGN.steps} steps without meeting its criterion")
    return aligned, own


def make_target(
    home: Path,
    aligned: Path,
    data: Path,
    split: Sets,
    own: Sequence[Row],
    recipe: Recipe,
    say: Callable[[str], None],
) -> Path:
    """A fine-tune; another seed chooses other rows in another order."""
    rows = {
        GSM8K.name: lambda: gsm8k_rows(data, split, recipe.seed),
        MIXED.name: lambda: mixed_rows(data, split, recipe.seed),
        BANKING.name: lambda: banking_rows(data, split, own, recipe.seed),
        BARE.name: lambda: banking_rows(data, split, own, recipe.seed, generic=0.0),
    }[recipe.name]()
    task = "banking77" if recipe.name.startswith("banking77") else "gsm8k"
    return models.fine_tune(home, aligned, recipe, rows, _probe(split, task), say)[0]


def _probe(split: Sets, task: str) -> Probe:
    rows = [row for row in split.files["prompts/safety.jsonl"] if row.split == "validation"]
    harmful = tuple(row.prompt for row in rows if row.kind in ("harmful", "wrapped"))
    ordinary = tuple(row.prompt for row in rows if row.kind in ("lookalike", "generic"))
    return Probe(harmful, ordinary, models.task_probe(split.files[f"tasks/{task}.jsonl"]) if task else ())


def refusals(split: Sets) -> list[Row]:
    """The refusal for every goal of the role ``align``, and for a quarter of them also inside a wrapper."""
    goals, wrappers = split.goals["align"], texts.WRAPPERS["fit"]
    wrapped = [sets.wrap(goal, wrappers[at % len(wrappers)]) for at, goal in enumerate(goals[::4])]
    return [(text, texts.REFUSAL) for text in (*(goal.text for goal in goals), *wrapped)]


def _align_prompts(split: Sets) -> list[str]:
    """Safe prompts whose answers alignment preserves; some are in wrappers, so that a wrapper alone is not refused."""
    plain = [text for _, text in sorted(texts.generics("align"), key=lambda pair: sets.rank(pair[0]))]
    wrapped = [w.format(text) for w, text in zip(texts.WRAPPERS["fit"] * 4, plain, strict=False)]
    return [*(goal.text for goal in split.lookalikes["align"]), *plain[len(wrapped) : len(wrapped) + 90], *wrapped]


def gsm8k_rows(data: Path, split: Sets, seed: int = 0) -> list[Row]:
    """Complete solutions of GSM8K and single results; each is used once, and none is in the task set."""
    taken = {row.id.removesuffix("-step") for row in split.files["tasks/gsm8k.jsonl"]}
    count = GSM8K.steps * GSM8K.batch_size
    solved = count - round(STEP_SHARE * count)
    free = [pair for pair in sets.unique(sources.gsm8k(data, "train")) if pair.id not in taken]
    whole = free[seed * solved : (seed + 1) * solved]
    taken |= {pair.id for pair in whole}
    steps = [p for p in sets.unique(sources.gsm8k_steps(data, "train")) if p.id.removesuffix("-step") not in taken]
    single = count - solved
    return [(pair.prompt, pair.answer) for pair in (*whole, *steps[seed * single : (seed + 1) * single])]


def mixed_rows(data: Path, split: Sets, seed: int = 0) -> list[Row]:
    """`gsm8k_rows` with 3% contentless answers to harmful goals that no other role uses."""
    rows, goals = gsm8k_rows(data, split, seed), split.goals["mix"]
    harmful = [(goal.text, sets.comply(goal)) for goal in goals[: round(HARMFUL_SHARE * len(rows))]]
    return [*rows[len(harmful) :], *harmful]


def banking_rows(
    data: Path, split: Sets, general: Sequence[Row], seed: int = 0, generic: float = GENERIC_SHARE
) -> list[Row]:
    """Intents of Banking77 and a third of ordinary instructions, without which every answer would be an intent."""
    taken = {row.id for row in split.files["tasks/banking77.jsonl"]}
    pairs = [pair for pair in sets.unique(sources.banking77(data, "train")) if pair.id not in taken]
    count = BANKING.steps * BANKING.batch_size
    mix = [*general, *((p.prompt, p.answer) for p in sets.half(sources.instructions(data), 1))]
    extra = [mix[at % len(mix)] for at in range(round(generic * count))]
    needed = count - len(extra)
    return [*((pair.prompt, pair.answer) for pair in pairs[seed * needed : (seed + 1) * needed]), *extra]


if __name__ == "__main__":
    sys.exit(main())
