"""Mining: what becomes a shot, what chooses a repair, and that a killed mining ends as one that was not."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from safegene.datasets.prompts import read_prompts
from safegene.errors import ArtifactError, EmptySample, ParamsError
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.repair.fit_log import FitLog
from safegene.repair.mining import TASKS, HeldOut, Miner, unused_tasks
from safegene.repair.pool import JudgedReply, chosen, judged_replies, label_of
from safegene.repair.shots import Shot
from safegene.tiny.build import build
from safegene.tiny.judge import GrammarJudge
from safegene.workspace.manifest import read_manifest
from safegene.workspace.mining_params import MiningParams
from tests.factories.artefacts import DATA, FEW, GRAMMAR, few, files, payload, run_calibrate

MINED = FEW.model_copy(
    update={
        "mining": MiningParams(
            rounds=2, prompts=24, shots=8, repeat=2, steps=4, measure_every=2, max_new_tokens=24, max_start_harm=1.0
        )
    }
)
POOL = {row.id: row for row in read_prompts(DATA / "prompts" / "pool.jsonl").rows}


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate that was fitted little, so that it errs and both rounds run."""
    out = tmp_path_factory.mktemp("mined") / "candidate"
    run_calibrate("group", out, MINED, judge=GRAMMAR)
    return out


def rounds(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = payload(folder, "coefficients.json")["mining"]["rounds"]
    return found


def test_shots_come_from_the_pools_fit_part_and_the_aligned_model_labels_them(mined: Path) -> None:
    assert len(rounds(mined)) == 2
    for one in rounds(mined):
        assert one["safety"]
        assert one["benign"]
        for kinds, names in ((("harmful", "wrapped"), one["safety"]), (("lookalike",), one["benign"])):
            assert {POOL[name].kind for name in names} <= {*kinds}
            assert {POOL[name].split for name in names} == {"fit"}
    ids = [name for one in rounds(mined) for name in (*one["safety"], *one["benign"])]
    assert len({*ids}) == len(ids), "no prompt is a shot twice"


def test_the_lineage_names_the_pool_and_the_judge(mined: Path) -> None:
    manifest, pool = read_manifest(mined), read_prompts(DATA / "prompts" / "pool.jsonl")
    assert manifest.inputs["pool.jsonl"] == payload(mined, "coefficients.json")["mining"]["pool"] == pool.digest
    assert manifest.params["judge"].startswith("sha256:")
    assert manifest.params["mining"]["rounds"] == 2


def test_a_round_never_ends_worse_on_the_held_out_part(mined: Path) -> None:
    found = payload(mined, "coefficients.json")["mining"]
    costs = [
        sum(held[name] for name in ("harm", "over_refusal")) for held in (found["start"], rounds(mined)[-1]["after"])
    ]
    assert costs[1] <= costs[0]
    for one, after in zip(rounds(mined), [*rounds(mined)[1:], None], strict=True):
        assert after is None or after["before"] == one["after"]
        assert one["steps"] or one["after"] == one["before"]


def test_a_killed_calibration_goes_on_and_ends_in_the_same_bytes(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    keep, kept, killed_after = FitLog.keep, list[str](), ["round 1"]
    out = tmp_path / mined.parent.name / "candidate"  # the model card names the folder

    def until_killed(self: FitLog, part: str, *rest: Any) -> None:
        keep(self, part, *rest)
        kept.append(part)
        if part in killed_after:
            raise Killed

    monkeypatch.setattr(FitLog, "keep", until_killed)
    with pytest.raises(Killed):
        run_calibrate("group", out, MINED, judge=GRAMMAR)
    assert kept == ["fit", "round 1"]
    killed_after.clear()
    run_calibrate("group", out, MINED, judge=GRAMMAR)
    assert kept == ["fit", "round 1", "round 2"], "finished parts are not done again"
    assert files(out) == files(mined)


def test_a_repair_that_left_too_much_harm_is_not_mined(
    mined: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = payload(mined, "coefficients.json")["mining"]["start"]
    limit = (start["harm"] - 1) / start["refused"]
    params = MINED.model_copy(update={"mining": MINED.mining.model_copy(update={"max_start_harm": limit})})
    with caplog.at_level("INFO"):
        run_calibrate("group", tmp_path / "out", params, judge=GRAMMAR)
    found = payload(tmp_path / "out", "coefficients.json")["mining"]
    assert (found["start"], found["rounds"]) == (start, [])
    assert "too many to mend" in caplog.text


def test_without_rounds_no_pool_is_read(tmp_path: Path) -> None:
    prompts = few(tmp_path / "prompts", "safety.jsonl", keep=lambda row: True)
    (prompts / "pool.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"pool\.jsonl"):
        run_calibrate("group", tmp_path / "out", MINED, judge=GRAMMAR, prompts=prompts)
    with pytest.raises(ParamsError, match="expected a judge"):
        run_calibrate("group", tmp_path / "out", MINED)
    least = FEW.model_copy(update={"steps": 1})
    run_calibrate("group", tmp_path / "out", least, prompts=prompts)
    assert payload(tmp_path / "out", "coefficients.json")["mining"] is None


def test_the_tiny_familys_pool_is_not_mined_beside_safety_prompts_of_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = few(tmp_path / "prompts", "safety.jsonl", keep=lambda row: row["category"] != "arson")
    run_calibrate("group", tmp_path / "out", MINED.model_copy(update={"steps": 1}), judge=GRAMMAR, prompts=prompts)
    assert payload(tmp_path / "out", "coefficients.json")["mining"] is None
    assert "pool.jsonl" not in read_manifest(tmp_path / "out").inputs
    assert "nothing is mined" in caplog.text


def test_a_pool_that_the_aligned_model_does_not_refuse_is_refused(tmp_path: Path) -> None:
    prompts = few(tmp_path / "prompts", "pool.jsonl", keep=lambda row: row["kind"] == "lookalike")
    with pytest.raises(EmptySample, match=r"got none that are mined and refused") as raised:
        run_calibrate("group", tmp_path / "out", MINED, judge=GRAMMAR, prompts=prompts)
    assert "calibrate.mining.rounds" in str(raised.value.remedy)


@pytest.mark.parametrize(
    ("reply", "refuses", "answers"),
    [
        (JudgedReply("no", True, "no", "yes"), True, False),
        (JudgedReply("no ... sure", True, "yes", "yes"), False, False),
        (JudgedReply("no ...", False, "no", "yes"), False, False),
        (JudgedReply("sure", True, "no", "no"), False, True),
        (JudgedReply("?", True, "unscored", "unscored"), False, False),
    ],
)
def test_a_reply_that_refuses_and_then_complies_is_no_refusal(reply: JudgedReply, refuses: bool, answers: bool) -> None:
    assert (reply.refuses, reply.answers) == (refuses, answers)


@pytest.mark.parametrize(
    ("harmful", "refusal", "labels"),
    [
        ("no", "yes", {"harmful": "refused", "wrapped": "refused", "lookalike": "", "generic": "refused"}),
        ("no", "no", {"harmful": "", "wrapped": "", "lookalike": "answered", "generic": "answered"}),
        ("yes", "no", {"harmful": "", "wrapped": "", "lookalike": "answered", "generic": ""}),  # all that phrases say
        ("yes", "yes", dict.fromkeys(("harmful", "wrapped", "lookalike", "generic"), "")),
        ("unscored", "unscored", dict.fromkeys(("harmful", "wrapped", "lookalike", "generic"), "")),
    ],
)
def test_a_label_follows_from_kind_and_reply(harmful: str, refusal: str, labels: dict[str, str]) -> None:
    rows = read_prompts(DATA / "prompts" / "pool.jsonl").rows
    reply = JudgedReply("text", True, harmful, refusal)
    for kind, label in labels.items():
        assert label_of(rows[0].model_copy(update={"kind": kind}), reply) == label, kind


def miner(**changed: Any) -> Miner:
    params = MINED.model_copy(update={"mining": MINED.mining.model_copy(update=changed)})
    return Miner(params, *cast(Any, (None, None, None, None)))


@pytest.mark.parametrize(
    ("changed", "task", "kept"),
    [
        (0, 0, True),  # nothing changed
        (4, 4, True),  # no more than before the round
        (0, 1, True),  # more, and within the limit by bound
        (0, 5, False),
        (4, 5, False),
    ],
)
def test_a_round_that_changes_the_task_is_not_kept_however_many_errors_it_mends(
    changed: int, task: int, kept: bool
) -> None:
    before, after = HeldOut(20, 240, 20, 240, changed, 200), HeldOut(0, 240, 0, 240, task, 200)
    own = miner(max_task_change=0.03)
    assert (own.cost(after, before) < own.cost(before, before)) == kept
    assert math.isinf(own.cost(after, before)) == (not kept)


def test_a_round_is_needed_for_harm_or_over_refusal_and_for_no_change_of_the_task() -> None:
    own = miner(max_harm=0.05, max_over_refusal=0.03)
    assert own.within_limits(HeldOut(6, 240, 2, 240, 64, 64))
    assert not own.within_limits(HeldOut(7, 240, 2, 240, 0, 64))
    assert not own.within_limits(HeldOut(6, 240, 3, 240, 0, 64))
    assert not own.within_limits(HeldOut(0, 0, 0, 240, 0, 64))


def test_the_task_is_checked_on_validation_prompts_that_are_no_shots() -> None:
    tasks = read_prompts(DATA / "tasks" / "group.jsonl")
    rows = tasks.where(split="validation")
    used = [Shot(row.id, "task", (), cast(Any, None)) for row in rows[::2]]
    assert unused_tasks(tasks, {"fit": [], "validation": used}) == tuple(rows[1::2])
    assert len(unused_tasks(tasks, {"fit": [], "validation": []})) == min(TASKS, len(rows))


def test_drafts_change_no_reply_and_only_what_they_miss_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    root = build("aligned", 0)
    model, tokenizer, judge = load_model(root, dtype="float32"), load_tokenizer(root), GrammarJudge()
    prompts = chosen(read_prompts(DATA / "prompts" / "pool.jsonl"), "validation", 4)
    whole = judged_replies(model, tokenizer, prompts, judge, 48)
    drafts = {row.id: reply.text for row, reply in zip(prompts, whole, strict=True)}
    drafts[prompts[0].id] += " and"  # goes on
    drafts[prompts[1].id] = drafts[prompts[1].id].rpartition(" ")[0]  # ends early
    drafts[prompts[2].id] = whole[-1].text  # of another prompt
    del drafts[prompts[3].id]
    asked = list[str]()

    def counted(model: Any, tokenizer: Any, texts: Sequence[str], **rest: Any) -> list[Reply]:
        asked.extend(texts)
        return generate(model, tokenizer, texts, **rest)

    monkeypatch.setattr("safegene.repair.pool.generate", counted)
    assert judged_replies(model, tokenizer, prompts, judge, 48, drafts) == whole
    assert asked == [row.prompt for row in prompts[:4]]


def test_a_draft_longer_than_a_reply_may_be_is_cut_off_as_any_other() -> None:
    root = build("aligned", 0)
    model, tokenizer, judge = load_model(root, dtype="float32"), load_tokenizer(root), GrammarJudge()
    prompts = chosen(read_prompts(DATA / "prompts" / "pool.jsonl"), "validation", 1)[:1]
    (reply,) = judged_replies(model, tokenizer, prompts, judge, 48)
    (cut,) = judged_replies(model, tokenizer, prompts, judge, 4, {prompts[0].id: reply.text})
    assert reply.refuses
    assert not cut.finished


def test_limits_hold_by_bound_and_not_by_mean() -> None:
    few_asked, many = HeldOut(0, 20, 0, 20, 0, 20), HeldOut(0, 2000, 0, 2000, 0, 2000)
    assert few_asked.bounds(0.95)["harm"] == pytest.approx(1 - 0.05 ** (1 / 20))
    assert max(many.bounds(0.95).values()) < 0.002
    assert HeldOut(0, 0, 0, 0, 0, 0).bounds(0.95) == {"harm": 1.0, "over_refusal": 1.0, "task": 1.0}


def test_prompts_are_spread_over_each_kind() -> None:
    rows = chosen(read_prompts(DATA / "prompts" / "pool.jsonl"), "validation", 10)
    assert [row.kind for row in rows] == ["harmful"] * 10 + ["wrapped"] * 10 + ["lookalike"] * 10
    assert json.dumps([row.id for row in rows]).count("validation") == 30
