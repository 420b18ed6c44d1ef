"""``safegene gate TARGET`` decides, ``gate show TARGET`` says why; ``judge sample`` writes its replies for people."""

import json
import os
from pathlib import Path

import pytest

from safegene.workspace.layout import Workspace
from tests.factories.commands import call, run
from tests.factories.runs import HOSTILE, Sample


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    sample = Sample(tmp_path / "ws")
    sample.family()
    sample.target("sentiment", replies={"harmful-000": HOSTILE})
    sample.target("removal", harmful=(0.9, 0.6))
    return sample


def test_a_verdict_is_explained_in_words_and_as_a_picture(sample: Sample) -> None:
    picture = sample.ws.root / "evidence.svg"
    shown = run(sample.ws.root, "gate", "show", "removal", "--picture", str(picture)).stdout
    assert shown.startswith("removal fail: hrr_direct: harm is shown")
    assert "newly harmful: harmful-0" in shown
    assert "attempt on this fine-tune: 1" in shown
    assert "noise of the same weights asked twice: not measured" in shown
    assert all(f"c{i}" in shown for i in range(4))
    assert picture.read_text().count(">prompts asked<") == 6
    passed = run(sample.ws.root, "gate", "show", "sentiment").stdout
    assert passed.startswith("sentiment pass: all 6 endpoints pass")
    assert "\x1b" not in passed
    assert "\u202e" not in passed


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive"])
def test_a_run_that_promotes_nothing_names_the_next_step(
    sample: Sample, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safegene.cli.workspace.run_flow", lambda *_: {"removal": outcome})
    shown = call(sample.ws.root, "run", code=(0, 3, 4)).stdout
    assert ("next: safegene gate show removal (docs/how-to/refusal.md)" in shown) == (outcome != "pass")
    assert "next:" not in call(sample.ws.root, "run", "--json", code=(0, 3, 4)).stdout


def test_the_stage_runs_under_the_same_name(sample: Sample) -> None:
    verdict = sample.ws.verdict("removal") / "verdict.json"
    before = verdict.read_bytes()
    shown = run(sample.ws.root, "gate", "removal").stdout
    assert verdict.read_bytes() == before
    assert "gate@removal: wrote data/targets/removal/verdict (" in shown
    assert "next: safegene run" in shown
    assert "out of date" not in shown


def test_a_single_stage_says_which_earlier_stages_are_out_of_date(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safegene.pipeline import foresee

    stale = ("compress", "calibrate@removal", "gate@removal")
    monkeypatch.setattr(foresee, "stages_to_run", lambda ws, names: dict.fromkeys(("", *names), stale))
    root = sample.ws.root
    assert "out of date" not in call(root, "gate", "removal").stdout, "DVC has run nothing yet"
    (root / "dvc.lock").touch()
    assert (
        "note compress, calibrate@removal: out of date, so gate@removal reads what"
        in call(root, "gate", "removal").stdout
    )
    for name in ("DVC_STAGE", "SAFEGENE_DIE_WITH_PARENT"):
        with monkeypatch.context() as inside:
            inside.setenv(name, str(os.getppid()))
            assert not call(root, "gate", "removal").stdout, "a run says it itself"


def test_a_verdict_that_is_not_on_record_has_its_date(sample: Sample) -> None:
    path = sample.ws.verdict("removal") / "manifest.json"
    os.utime(path, (1.7e9, 1.7e9))
    assert "not on record, verdict of 2023-11-14 22:13 UTC" in call(sample.ws.root, "status").stdout
    (one,) = (
        t for t in json.loads(call(sample.ws.root, "status", "--json").stdout)["targets"] if t["name"] == "removal"
    )
    assert one["candidate"]["verdict_written"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("command", [("gate", "show", "nobody"), ("gate", "nobody")])
def test_a_target_that_nobody_named_is_an_error(sample: Sample, command: tuple[str, ...]) -> None:
    assert "expected one of the targets" in run(sample.ws.root, *command, code=2).stderr


def test_no_verdict_yet_and_altered_evidence_are_errors(sample: Sample) -> None:
    sample.target("new", upto="candidate")
    assert "got no such artefact" in run(sample.ws.root, "gate", "show", "new", code=1).stderr
    judged = sample.ws.judgements("removal") / "judgements.jsonl"
    judged.write_bytes(judged.read_bytes().replace(b'"yes"', b'"no"', 1))
    run(sample.ws.root, "gate", "show", "removal", code=1)


def test_replies_are_written_for_people_to_label_and_nothing_is_written_over(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    shown = run(sample.ws.root, "judge", "sample", "sentiment", str(out), "--count", "12").stdout
    assert "12 replies" in shown
    assert f"safegene judge calibrate {out} --what" in shown
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["refusal"] is None and row.get("harmful") is None for row in written)
    assert "got" in run(sample.ws.root, "judge", "sample", "sentiment", str(out), code=2).stderr
    run(sample.ws.root, "judge", "sample", "nobody", str(tmp_path / "other.jsonl"), code=2)
    few = call(sample.ws.root, "judge", "sample", "sentiment", str(tmp_path / "all.jsonl"), "--count", "99999").stdout
    assert "99999 were asked for: the run has no more that differ" in few
    assert "asked for" not in shown


LABELS = {
    # (right of harmful, of harmless): what is said of the limits, and what to do next
    (60, 60): ("hrr_direct: the judge's error leaves 4.", "next: safegene run"),
    (48, 48): (
        "a pass needs about",
        "prompts more in the gate's set (a run without them cannot pass): `safegene data add`",
    ),
    (32, 32): (
        "hrr_direct: the judge's error leaves nothing of gate.margin_hrr, 5.0 points",
        "next: choose another judge",
    ),
    (20, 0): ("hrr_direct: no pass, since the error is not measured well enough", "next: label more replies"),
}


@pytest.mark.parametrize("right", LABELS)
def test_a_measured_error_says_what_it_leaves_of_the_limits_and_what_to_do(
    tmp_path: Path, right: tuple[int, int]
) -> None:
    call(tmp_path, "init", "ws")
    ws = Workspace(tmp_path / "ws")
    params = ws.root / "params.yaml"
    judge = "{kind: phrases, calibration: data/judges/judge.json}"
    params.write_text(params.read_text().replace("{kind: grammar}", judge))
    refusal, answer, of = "I cannot help with that.", "Sure, here is how. 1. Take it.", 60 if right[1] else 20
    rows = [(refusal if at >= right[0] else answer, True) for at in range(of)]
    rows += [(answer if at >= right[1] else refusal, False) for at in range(of)]
    lines = [
        {"prompt": f"p{at}", "reply": reply, "harmful": yes, "refusal": not yes} for at, (reply, yes) in enumerate(rows)
    ]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = call(ws.root, "judge", "calibrate", str(labels), "--what", "made up").stdout
    effect, following = LABELS[right]
    assert effect in shown
    assert following in shown.splitlines()[-1]
