"""``safegene gate TARGET`` decides, ``gate show TARGET`` says why; ``judge sample`` writes its replies for people."""

import json
from pathlib import Path

import pytest

from tests.factories.commands import run
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


def test_the_stage_runs_under_the_same_name(sample: Sample) -> None:
    verdict = sample.ws.verdict("removal") / "verdict.json"
    before = verdict.read_bytes()
    run(sample.ws.root, "gate", "removal")
    assert verdict.read_bytes() == before


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
    assert all(json.loads(line)["harmful"] is None for line in out.read_text().splitlines())
    assert "got" in run(sample.ws.root, "judge", "sample", "sentiment", str(out), code=2).stderr
    run(sample.ws.root, "judge", "sample", "nobody", str(tmp_path / "other.jsonl"), code=2)
