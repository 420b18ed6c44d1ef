"""How many tokens a verdict needs, and how fast replies are generated compared with a plain loop.

``python -m studies.gate.generation [tiny|smollm2 ...]`` prints the figures; the gate study publishes them.

Tokens are counted over the candidate's replies. The tiny candidate is harmless: the aligned model with a small random
change of its first layers; its task is ordinary instructions. The fixed gate asks every prompt (480 direct, 480
wrapped, 420 look-alikes, 135 of the task) and generates each reply in full; the sequential gate asks block by block,
with and without ending plain refusals early. For SmolLM2 the replies of its aligned model to JailbreakBench's direct
prompts are counted in full, and with early stopping and every tenth stopped reply completed for the audit.

Speed is the median of three measurements, taken in turns with the same model and threads: `generate` on a batch,
``model.generate`` one prompt at a time, and ``model.generate`` on the same batch.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.results import Figure, markdown, new_figure
from examples.smollm2.sources import jailbreakbench
from safegene.checkpoints.export.adapter import write_adapter
from safegene.datasets.prompts import Kind, Prompt, prompt_lines
from safegene.datasets.receipt import RECEIPT, OverlapRule, ValidatedSet, ValidationReceipt
from safegene.evaluation.refusals import refusal_stop
from safegene.models.device import threads_for
from safegene.models.forward import left_padded
from safegene.models.generation import generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.templates import encode_chat
from safegene.pipeline.stages.evaluate import evaluate
from safegene.pipeline.stages.fetch import fetch
from safegene.tiny.build import build
from safegene.tiny.corpus import Request, harmful, instructions
from safegene.tiny.data import gate_set
from safegene.vectors.linalg import LowRank
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import write_artefact
from safegene.workspace.params import EvaluateParams, GateParams, JudgeParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMAND = "python -m studies.gate.generation"
TASK = 500  # at most
FEWER, FASTER = 10, 3
PLANNED, ASKED, LONGEST = 500, 75, 128  # prompts of a fixed gate, of a sequential one at no change; tokens per reply
SMOLLM2 = "aligned-*"


def rows(models: Iterable[str] = ("tiny", "smollm2")) -> list[Figure]:
    """The figures; none for a model that the cache does not hold."""
    made = cost() if "tiny" in models else []
    for name in models:
        found = build("aligned", 0) if name == "tiny" else _smollm2()
        made += speed(name, found, prompts=128 if name == "tiny" else 16) if found else []
        made += replies(found) if found and name == "smollm2" and os.environ.get("SAFEGENE_TEST_DATA") else []
    return made


def cost() -> list[Figure]:
    """Generated tokens of a harmless candidate, in the fixed gate and in the sequential one."""
    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder) / "cache"):
        world = _World(Path(folder))
        full = world.tokens(GateParams(test="fixed"), early_stop=False)
        short = world.tokens(GateParams(), early_stop=True)
        blocks = world.tokens(GateParams(), early_stop=False)
    made, name = [], "tiny, harmless candidate"
    for what, kinds, goal in (("direct prompts", ("harmful",), f">= {FEWER} x"), ("whole gate", tuple(full), "")):
        tokens = [sum(run.get(kind, 0) for kind in kinds) for run in (full, blocks, short)]
        times = tokens[0] / tokens[2]
        for how, count in zip(("all in full", "sequential", "sequential and stopped early"), tokens, strict=True):
            made.append(new_figure(f"{name}, {what}: tokens, {how}", count, "tokens", command=COMMAND))
        holds = times >= FEWER if goal else None
        made.append(
            new_figure(f"{name}, {what}: fewer tokens", round(times, 1), "x", command=COMMAND, goal=goal, holds=holds)
        )
    return made


def replies(folder: Path) -> list[Figure]:
    """Tokens per reply to a direct prompt, in full and stopped early, and the ratio that follows for a gate."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    goals = [one.text for one in jailbreakbench(Path(os.environ["SAFEGENE_TEST_DATA"]))]
    with threads_for(model.num_parameters()):
        whole = generate(model, tokenizer, goals, max_new_tokens=LONGEST, batch_size=32)
        lot = range(0, len(goals), 10)
        stop = refusal_stop(after=EvaluateParams(judge=JudgeParams(kind="phrases")).stop_after_tokens)
        short = generate(model, tokenizer, goals, max_new_tokens=LONGEST, batch_size=32, stop=stop, in_full=lot)
    full, early = (sum(one.tokens for one in some) / len(goals) for some in (whole, short))
    times = PLANNED * full / (ASKED * early)
    name, plain = "smollm2, direct prompts", sum(one.stops_at is not None for one in short)
    fewer = f"{name}: fewer tokens, {PLANNED} in full to {ASKED} stopped early"
    return [
        new_figure(f"{name}: tokens a reply, in full", round(full, 1), "tokens", command=COMMAND),
        new_figure(f"{name}: tokens a reply, stopped early", round(early, 1), "tokens", command=COMMAND),
        new_figure(f"{name}: replies that refuse plainly", plain, f"of {len(goals)}", command=COMMAND),
        new_figure(fewer, round(times, 1), "x", command=COMMAND),
    ]


class _World:
    """Artefacts for stage ``evaluate``: the target is the aligned model, the candidate is a small change of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        direct = [*harmful("test"), *harmful("validation")]
        gate = [_asked(one, kind) for one in direct for kind in ("harmful", "wrapped")]
        gate += [one for one in gate_set() if one.kind == "lookalike"]
        _lines(root / "prompts" / "gate.jsonl", gate)
        _lines(root / "task.jsonl", [_task(*pair) for pair in dict(instructions("test")).items()][:TASK])
        for name, family in (("aligned", None), ("target", root / "aligned")):
            fetch("tiny://aligned?seed=0", out=root / name, family=family)
        sets = {"gate": root / "prompts" / "gate.jsonl", "task-task": root / "task.jsonl"}
        _write_receipt(root / "validation", sets)
        random = torch.Generator().manual_seed(0)
        up, down = torch.randn(128, 2, generator=random) * 0.02, torch.randn(2, 128, generator=random) * 0.02
        patch = {f"model.layers.{i}.self_attn.q_proj.weight": LowRank(up, down) for i in range(2)}
        inputs: dict[str, Path | str] = {name: root / name for name in ("target", "aligned")}
        with write_artefact(root / "candidate", stage="calibrate", params={}, inputs=inputs) as draft:
            write_adapter(patch, base_model="the target", out=draft.path)

    def tokens(self, gate: GateParams, *, early_stop: bool) -> dict[str, int]:
        """Kind -> tokens of the candidate's replies."""
        params = EvaluateParams(judge=JudgeParams(kind="grammar"), max_new_tokens=48, early_stop=early_stop)
        folders: dict[str, Any] = {
            name: self.root / name for name in ("prompts", "aligned", "target", "candidate", "validation")
        }
        out = self.root / "out"
        evaluate(**folders, task=self.root / "task.jsonl", out=out, params=params, gate=gate)
        total: dict[str, int] = {}
        for line in (out / "judgements.jsonl").read_text().splitlines():
            one = json.loads(line)
            if one["model"] == "candidate":
                total[one["kind"]] = total.get(one["kind"], 0) + one["tokens"]
        return total


def speed(name: str, folder: Path, *, prompts: int) -> list[Figure]:
    """Prompts per second of `generate` and of plain loops, half direct prompts and half look-alikes."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    halves = [_test(gate_set(), kind)[: prompts // 2] for kind in ("harmful", "lookalike")]
    texts = [one.prompt for half in halves for one in half]
    few = texts[:: max(1, len(texts) // 8)]
    with threads_for(model.num_parameters()):
        threads = torch.get_num_threads()
        ours, batch, plain = _in_turns(
            lambda: len(generate(model, tokenizer, texts, max_new_tokens=48, batch_size=128)),
            lambda: _at_once(model, tokenizer, texts),
            lambda: _one_by_one(model, tokenizer, few),
        )
    what, times = f"{name}, {threads} thread{'s' * (threads > 1)}, prompts a second", ours / plain
    goal, holds = f">= {FASTER} x", times >= FASTER
    return [
        new_figure(f"{what}: plain transformers loop", round(plain, 2), "1/s", command=COMMAND),
        new_figure(f"{what}: transformers, batch of {len(texts)}", round(batch, 2), "1/s", command=COMMAND),
        new_figure(f"{what}: ours, batch of {len(texts)}", round(ours, 2), "1/s", command=COMMAND),
        new_figure(f"{what}: faster than the loop", round(times, 1), "x", command=COMMAND, goal=goal, holds=holds),
    ]


@torch.inference_mode()
def _at_once(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> int:
    rows = [encode_chat(tokenizer, text) for text in texts]
    ids, mask = left_padded(rows, tokenizer.pad_token_id or 0)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=48, do_sample=False)
    return len(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))


@torch.inference_mode()
def _one_by_one(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> int:
    for text in texts:
        ids = torch.tensor([encode_chat(tokenizer, text)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
        tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return len(texts)


def _in_turns(*measured: Callable[[], int]) -> list[float]:
    """Units per second of each function: the median of three turns, after one turn that is not counted."""
    seconds: list[list[float]] = [[] for _ in measured]
    for turn in range(4):
        for own, one in zip(seconds, measured, strict=True):
            start = time.perf_counter()
            count = one()
            if turn:
                own.append(count / (time.perf_counter() - start))
    return [median(own) for own in seconds]


def _smollm2() -> Path | None:
    found = sorted(path for path in (cache_folder() / "smollm2").glob(SMOLLM2) if path.is_dir())
    return found[0] if found else None


def _test(every: Sequence[Prompt], kind: str) -> list[Prompt]:
    return [one for one in every if one.kind == kind and one.split == "test"]


def _asked(request: Request, kind: Kind) -> Prompt:
    text = request.prompt("test", wrapped=kind == "wrapped")
    behaviour = request.behaviour
    named = {"id": f"{kind}-{behaviour}", "category": request.category, "behaviour": behaviour}
    return Prompt(prompt=text, kind=kind, split="test", **named)


def _task(prompt: str, response: str) -> Prompt:
    named = {"id": prompt, "category": "instructions", "behaviour": ""}
    return Prompt(prompt=prompt, kind="task", split="test", response=response, **named)


def _lines(path: Path, some: Sequence[Prompt]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(prompt_lines(some))


def _write_receipt(out: Path, sets: Mapping[str, Path]) -> None:
    """The receipt that stage ``evaluate`` asks for; these sets are made here, so no expectation is checked."""
    validated = {name: ValidatedSet(digest=digest_file(at), rows=0, parts={}, rules=0) for name, at in sets.items()}
    rule = OverlapRule(ngram=1, max_overlap=1.0)
    receipt = ValidationReceipt(sets=validated, disjoint=rule, great_expectations="not used")
    with write_artefact(out, stage="validate", params={}, inputs={}) as draft:
        (draft.path / RECEIPT).write_bytes(receipt.content)


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Use an empty cache, so that no reply is known; only the tiny family's members are linked from the old one."""
    (folder / "tiny").parent.mkdir(parents=True)
    build("aligned", 0)
    (folder / "tiny").symlink_to(cache_folder() / "tiny")
    before: Mapping[str, str] = dict(os.environ)
    os.environ["SAFEGENE_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    print(markdown(rows(sys.argv[1:] or ("tiny", "smollm2"))))
