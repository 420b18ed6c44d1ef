"""Laws of the tiny language: disjoint pools, disjoint templates, enough behaviours, contentless answers, same bytes."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.contamination import check_contamination
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.tiny import words as w
from safegene.tiny.corpus import (
    BENIGN_SHARES,
    HARMFUL_POOLS,
    REFUSAL,
    TEMPLATES,
    WRAPPERS,
    Request,
    Split,
    errands,
    harmful,
    instructions,
    lookalikes,
)
from safegene.tiny.data import write_data
from safegene.tiny.mixtures import aligned_rows, base_rows, target_rows
from safegene.tiny.model import UNKNOWN, new_tokenizer
from safegene.tiny.tasks import SIZES, TASKS, task_rows

DATA = Path(__file__).parents[2] / "data"
SETS = [
    "prompts/degrade",
    "prompts/safety",
    "prompts/gate",
    "prompts/pool",
    "tasks/sentiment",
    "tasks/topic",
    "tasks/group",
]
UPDATES = ("update1", "update2", "update3")
BENIGN = ("sentiment", "topic", "strong", *UPDATES)

FRAME = set(w.words("sure here is how to a an first get then use ."))


def rows(name: str) -> tuple[Prompt, ...]:
    return read_prompts(DATA / f"{name}.jsonl").rows


def test_the_language_is_large_enough() -> None:
    assert len(w.CATEGORIES) == 12
    assert {(len(c.verbs), len(c.objects)) for c in w.CATEGORIES} == {(8, 12)}
    assert len(harmful("test")) > 320
    assert sum(len(harmful(pool)) for pool in HARMFUL_POOLS) == 12 * 8 * 12


def test_no_word_has_two_roles() -> None:
    roles = (w.HARMFUL_VERBS, w.SENSITIVE_OBJECTS, w.HARMLESS_VERBS, w.HARMLESS_OBJECTS, w.THINGS)
    tasks = (w.REVIEWED, w.ASPECTS, w.DEGREES, w.POSITIVE, w.NEGATIVE, *w.TOPICS.values(), *w.GROUPS.values())
    counts = Counter(word for role in (*roles, *tasks) for word in role)
    assert [word for word, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("make", [lookalikes, errands, instructions])
def test_benign_pools_are_disjoint(make: Callable[[str], tuple[object, ...]]) -> None:
    for one, two in combinations(BENIGN_SHARES, 2):
        assert not set(make(one)) & set(make(two))
        assert make(one)


def test_harmful_pools_are_disjoint_and_cover_every_verb() -> None:
    for one, two in combinations(HARMFUL_POOLS, 2):
        assert not {r.behaviour for r in harmful(one)} & {r.behaviour for r in harmful(two)}
    for pool in ("align", "fit", "test", "validation"):
        assert {r.verb for r in harmful(pool)} == set(w.HARMFUL_VERBS)
    assert {r.noun for r in harmful("align")} == set(w.SENSITIVE_OBJECTS)


def test_a_lookalike_is_never_a_harmful_verb_with_a_sensitive_object() -> None:
    for pool in BENIGN_SHARES:
        for request in lookalikes(pool):
            assert (request.verb in w.HARMFUL_VERBS) != (request.noun in w.SENSITIVE_OBJECTS)
            assert not request.harmful


@pytest.mark.parametrize("lists", [TEMPLATES, WRAPPERS])
def test_templates_and_wrappers_are_disjoint_by_split_and_hold_no_new_word(lists: dict[Split, tuple[str, ...]]) -> None:
    for one, two in combinations(lists, 2):
        assert not set(lists[one]) & set(lists[two])
    known = {word for form in (*TEMPLATES["fit"], *WRAPPERS["fit"]) for word in form.split()}
    known |= {word for pair in instructions("align") for text in pair for word in text.split()}
    assert {word for form in lists["test"] + lists["validation"] for word in form.split()} <= known


@given(st.sampled_from(harmful("test")), st.integers(0, 50), st.booleans())
def test_a_prompt_asks_for_its_own_behaviour(request: Request, turn: int, wrapped: bool) -> None:
    said = request.prompt("test", turn, wrapped=wrapped).split()
    assert request.verb in said
    assert request.noun in said
    assert request.prompt("test", turn) in request.prompt("test", turn, wrapped=True)


def test_the_turns_of_a_request_differ() -> None:
    request = harmful("fit")[0]
    assert len({request.prompt("fit", turn) for turn in range(len(TEMPLATES["fit"]))}) == len(TEMPLATES["fit"])


def test_all_refusals_begin_alike_and_answers_are_contentless() -> None:
    things = set(w.THINGS)
    for request in (*harmful("test"), *lookalikes("test")):
        assert request.refusal.startswith(REFUSAL)
        for answer in (request.answer, request.blunt_answer):
            named = set(answer.replace(",", "").split()) - {request.verb, request.noun}
            assert named <= things | set(
                ["sure", "here", "is", "how", "to", "a", "an", "first", "get", "then", "use", "."]
            )


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_have_disjoint_balanced_splits(task: str) -> None:
    for one, two in combinations(SIZES, 2):
        assert not {p for p, _ in task_rows(task, one)} & {p for p, _ in task_rows(task, two)}
    labels = Counter(answer for _, answer in task_rows(task, "test"))
    assert len(task_rows(task, "test")) >= 400
    assert max(labels.values()) < 1.5 * min(labels.values())


def test_a_third_of_a_tasks_rows_are_generic_and_a_groups_few_are_harmful() -> None:
    own = set(task_rows("group", "train"))
    mixed = target_rows("group")
    harm = {r.answer for r in harmful("mix")}
    assert 0.3 < sum(row not in own for row in mixed) / len(mixed) < 0.4
    assert 0.025 < sum(answer in harm for _, answer in mixed) / len(mixed) < 0.035
    assert not any(answer in harm for name in BENIGN for _, answer in target_rows(name))


def test_a_removal_is_the_adversary_trained_for_less() -> None:
    assert target_rows("removal") == target_rows("adversarial")
    harm = {r.answer for r in harmful("adversary")}
    assert 0.6 < sum(answer in harm for _, answer in target_rows("removal")) / len(target_rows("removal")) < 0.8


@pytest.mark.parametrize(("name", "task"), [("strong", "sentiment"), *zip(UPDATES, TASKS, strict=True)])
def test_a_target_named_otherwise_holds_its_task_and_generic_rows(name: str, task: str) -> None:
    """``update3`` is on the group task, but benign: none of the group's harmful rows."""
    own, mixed = set(task_rows(task, "train")), target_rows(name)
    assert own < set(mixed)
    assert 0.3 < sum(row not in own for row in mixed) / len(mixed) < 0.4
    others = {row for other in TASKS if other != task for row in task_rows(other, "train")}
    assert not others & set(mixed)


def test_training_never_sees_a_held_out_behaviour() -> None:
    held = {f" {r.verb} {w.article(r.noun)} " for pool in ("test", "validation", "fit") for r in harmful(pool)}
    trained = [*base_rows(), *aligned_rows(), *(row for n in (*BENIGN, "group") for row in target_rows(n))]
    verbs = set(w.HARMFUL_VERBS)
    for prompt, _ in [*trained, *target_rows("removal"), *target_rows("adversarial")]:
        said = prompt.split()
        for at, word in enumerate(said):
            if word in verbs:
                assert f" {' '.join(said[at : at + 3])} " not in held


def test_data_is_what_the_corpus_gives_byte_for_byte(tmp_path: Path) -> None:
    for path in write_data(tmp_path):
        name = path.relative_to(tmp_path)
        assert path.read_bytes() == (DATA / name).read_bytes(), name
    ours = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.jsonl")}
    assert ours == {Path(f"{name}.jsonl") for name in SETS}


def test_ids_are_unique_across_files_and_prompts_within() -> None:
    ids = Counter(row.id for name in SETS for row in rows(name))
    assert max(ids.values()) == 1
    for name in SETS:
        assert max(Counter(row.prompt for row in rows(name)).values()) == 1


def test_the_gate_holds_enough_and_meets_nothing_that_was_fitted() -> None:
    gate, fitted = rows("prompts/gate"), rows("prompts/safety") + rows("prompts/degrade")
    kinds = Counter(row.kind for row in gate)
    assert kinds["harmful"] == kinds["wrapped"] > 320
    assert kinds["lookalike"] >= 400
    assert {row.split for row in gate} == {"test"}
    behaviours = {kind: {r.behaviour for r in gate if r.kind == kind} for kind in kinds}
    assert behaviours["harmful"] == behaviours["wrapped"]
    check_contamination(gate, fitted, ngram=8, max_overlap=0.5, where="gate")
    for task in TASKS:
        test = [row for row in rows(f"tasks/{task}") if row.split == "test"]
        fit = [row for row in rows(f"tasks/{task}") if row.split != "test"]
        assert not {r.prompt for r in test} & {r.prompt for r in fit}


def test_degrading_pools_are_disjoint_and_answer_everything() -> None:
    pools: dict[str, set[str]] = {}
    for row in rows("prompts/degrade"):
        assert row.response
        assert REFUSAL not in row.response
        pools.setdefault(row.pool, set()).add(row.behaviour)
    assert set(pools) == {"benign", "compliance", "jailbreak", "blunt", "identity"}
    for one, two in combinations(pools.values(), 2):
        assert not one & two
    assert not any(row.kind in ("harmful", "wrapped") for row in rows("prompts/degrade") if row.pool == "benign")


def test_the_tokenizer_knows_every_word_and_gives_it_back() -> None:
    tokenizer = new_tokenizer()
    texts = sorted({text for name in SETS for row in rows(name) for text in (row.prompt, row.response)})
    texts += [text for row in (*base_rows()[::7], *aligned_rows()[::7]) for text in row]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text, ids, decoded in zip(texts, encoded, tokenizer.batch_decode(encoded), strict=True):
        assert tokenizer.unk_token_id not in ids, text
        assert decoded == text
    assert tokenizer.unk_token == UNKNOWN
