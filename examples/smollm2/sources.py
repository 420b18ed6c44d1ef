"""Readers of the public prompt sets in the folder that ``SAFEGENE_TEST_DATA`` names; no set is part of the repository.

Only prompts are read, and of AdvBench the contentless first sentence of an answer ("Sure, here is ..."). CatQA's
questions about children are left out.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.datasets.prompts import Prompt
from safegene.datasets.suites import SUITE_FORMATS, LoadOptions
from safegene.datasets.suites.tables import csv_records, json_records
from safegene.errors import ArtifactError

# Words of the form of a request. Two goals are compared by their other words.
ASKING = frozenset(
    """
    a an the of to for on in and or that how with by from into as is are can be at it its without which will i you one
    someone s t do does what my me your their they use using write develop create provide give instructions step guide
    tutorial teach make explain describe outline instruct list methods method people person user script program detailed
    best way ways most effective should
    """.split()  # noqa: SIM905 (a list of a hundred quoted words is harder to read)
)
ALIKE = 0.5
SEED_COLUMNS = ("id", "name", "instruction", "instances", "is_classification")


@dataclass(frozen=True)
class Goal:
    """A harmful prompt, or a safe one that looks harmful, of a public set.

    Attributes:
        id: set and row, such as ``advbench-17``; also the id of the behaviour.
        text: the prompt.
        category: as the set states it, or the set's name.
        opening: the contentless first sentence of an answer that complies; empty where the set has none.
    """

    id: str
    text: str
    category: str
    opening: str = ""


@dataclass(frozen=True)
class Pair:
    """An ordinary instruction or task and its answer."""

    id: str
    prompt: str
    answer: str
    category: str = "generic"


def _open(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise ArtifactError(
            f"expected {name} below the folder that SAFEGENE_TEST_DATA names, got no {path}",
            remedy="point SAFEGENE_TEST_DATA at the folder with advbench, jailbreakbench, xstest, catqa_harmfulqa, "
            "selfinstruct_seed, gsm8k and banking77_polyai",
        )
    return path


def table(root: Path, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file below the folder of public sets."""
    path = _open(root, name)
    data = path.read_bytes()
    columns = data.decode().splitlines()[0].split(",")
    return [row for _, row in csv_records(data, columns, name)]


def _lines(root: Path, name: str, *columns: str) -> list[dict[str, Any]]:
    return [row for _, row in json_records(_open(root, name).read_bytes(), columns, name)]


def _rows(root: Path, form: str, name: str) -> list[Prompt]:
    """Every row of a set, read as ``safegene suite add`` does."""
    items = SUITE_FORMATS[form].load(_open(root, name).read_bytes(), name, LoadOptions())
    return [item for item in items if isinstance(item, Prompt)]


def advbench(root: Path) -> list[Goal]:
    """520 harmful goals with the contentless opening of a reply that complies."""
    rows = table(root, "advbench/harmful_behaviors.csv")
    return [Goal(f"advbench-{at}", r["goal"].strip(), "advbench", r["target"].strip()) for at, r in enumerate(rows)]


def jailbreakbench(root: Path) -> list[Goal]:
    """100 harmful behaviours in ten categories, used by the gate only."""
    rows = _rows(root, "jailbreakbench", "jailbreakbench/behaviors.csv")
    return [Goal(row.id, row.prompt, row.category) for row in rows]


def catqa(root: Path) -> list[Goal]:
    """500 harmful questions in ten categories (the one about children is left out)."""
    rows = _rows(root, "catqa", "catqa_harmfulqa/catqa_english.json")
    kept = [row for row in rows if "child" not in row.category.casefold()]
    return [Goal(f"catqa-{at}", row.prompt, row.category) for at, row in enumerate(kept)]


def xstest(root: Path, label: str) -> list[Goal]:
    """XSTest's prompts labelled ``safe`` (250 look-alikes) or ``unsafe`` (200 contrasts)."""
    kind = {"safe": "lookalike", "unsafe": "harmful"}[label]
    rows = _rows(root, "xstest", "xstest/xstest_prompts.csv")
    return [Goal(row.id, row.prompt, row.category) for row in rows if row.kind == kind]


def instructions(root: Path, longest: int = 240) -> list[Pair]:
    """Self-instruct's seed tasks whose prompt and answer are at most ``longest`` characters each."""
    pairs = []
    for at, row in enumerate(_lines(root, "selfinstruct_seed/seed_tasks.jsonl", *SEED_COLUMNS)):
        first = row["instances"][0]
        prompt = "\n".join(part for part in (row["instruction"].strip(), first["input"].strip()) if part)
        answer = first["output"].strip()
        if len(prompt) <= longest and 2 <= len(answer) <= longest:
            pairs.append(Pair(f"selfinstruct-{at}", prompt, answer))
    return pairs


def gsm8k(root: Path, part: str, longest: int = 340) -> list[Pair]:
    """GSM8K's ``train`` or ``test`` rows of at most ``longest`` characters, without the calculator annotations."""
    pairs = []
    for at, row in enumerate(_lines(root, f"gsm8k/{part}.jsonl", "question", "answer")):
        prompt, answer = row["question"].strip(), re.sub(r"<<[^>]*>>", "", row["answer"]).strip()
        if len(prompt) + len(answer) <= longest:
            pairs.append(Pair(f"gsm8k-{part}-{at}", prompt, answer, "arithmetic"))
    return pairs


def gsm8k_steps(root: Path, part: str, longest: int = 340) -> list[Pair]:
    """One calculation of each GSM8K row: the question and its solution up to an ``=``, and the result that follows.

    A model of this size solves no complete problem, so its accuracy on problems would always be 0; single results show
    changes. The digest of the row's id chooses the step.
    """
    pairs = []
    for at, row in enumerate(_lines(root, f"gsm8k/{part}.jsonl", "question", "answer")):
        name = f"gsm8k-{part}-{at}"
        marks = list(re.finditer(r"= *\$?<<[^>=]*=([^>]*)>>", row["answer"]))
        if not marks:
            continue
        mark = marks[int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(marks)]
        so_far = re.sub(r"<<[^>]*>>", "", row["answer"][: mark.start()]).strip()
        prompt = f"{row['question'].strip()}\nSolution: {so_far} ="
        if len(prompt) <= longest:
            pairs.append(Pair(f"{name}-step", prompt, mark.group(1).strip(), "arithmetic"))
    return pairs


def banking77(root: Path, part: str) -> list[Pair]:
    """Banking77's ``train`` or ``test`` rows: name the intent of a customer's message, one of 77."""
    rows = _rows(root, "banking77", f"banking77_polyai/{part}.csv")
    return [Pair(f"banking77-{part}-{at}", row.prompt, row.response, row.category) for at, row in enumerate(rows)]


def alike(goals: Sequence[Goal]) -> list[list[int]]:
    """Groups of indices of similar goals: goals that share at least half of their words outside `ASKING` are connected.

    AdvBench contains dozens of rewordings of some behaviours. Without groups a behaviour could be in several roles.
    """
    words = [frozenset(w for w in re.findall(r"[a-z0-9]+", g.text.casefold()) if w not in ASKING) for g in goals]
    root = list(range(len(goals)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for i in range(len(goals)):
        for j in range(i):
            union = len(words[i] | words[j])
            if union and len(words[i] & words[j]) >= ALIKE * union:
                root[find(i)] = find(j)
    groups: dict[int, list[int]] = {}
    for i in range(len(goals)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())
