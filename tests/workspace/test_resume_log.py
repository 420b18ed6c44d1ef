import json
import shutil
from pathlib import Path

import pytest

from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.resume_log import ResumeLog


def test_what_was_appended_is_read_and_the_first_stands(tmp_path: Path) -> None:
    one = ResumeLog(tmp_path, {"model": "a"})
    assert one.read() == {}
    one.append({"p1": {"text": "x"}, "p2": "y"})
    one.append({"p1": "later", "p3": [1]})
    assert ResumeLog(tmp_path, {"model": "a"}).read() == {"p1": {"text": "x"}, "p2": "y", "p3": [1]}
    assert ResumeLog(tmp_path, {"model": "b"}).read() == {}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_law_what_stood_before_a_kill_is_read_after_it(tmp_path: Path, cut: int) -> None:
    one = ResumeLog(tmp_path, {"model": "a"})
    one.append({"p1": "x"})
    whole = one.path.read_bytes()
    one.append({"p2": "y"})
    one.path.write_bytes(one.path.read_bytes()[: len(whole) + cut])
    assert one.read() == {"p1": "x"}
    one.append({"p3": "z"})
    assert one.read() == {"p1": "x", "p3": "z"}


def test_a_kill_before_the_first_line_leaves_an_empty_journal(tmp_path: Path) -> None:
    one = ResumeLog(tmp_path, {"model": "a"})
    one.path.write_bytes(b'{"iden')
    assert one.read() == {}
    one.append({"p": 1})
    assert one.read() == {"p": 1}


def test_lines_of_another_checkpoint_are_passed_over(tmp_path: Path) -> None:
    weak, strong = ResumeLog(tmp_path, {"model": "weak"}), ResumeLog(tmp_path, {"model": "strong"})
    strong.append({"p": "I refuse"})
    shutil.copy(strong.path, weak.path)
    assert weak.read() == {}
    weak.append({"p": "I comply"})
    assert weak.read() == {"p": "I comply"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"I refuse", b"I comply"),
        (b'"p1"', b'"p2"'),
        (b'"p1"', b"1"),
        (b'{"key"', b'["key"'),
        (b'"seal":"', b'"seal":"0'),
        (b'"seal":', b'"check":'),
        (b'{"key"', b"\xff"),
    ],
)
def test_a_changed_line_is_passed_over(
    tmp_path: Path, old: bytes, new: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one = ResumeLog(tmp_path, {"model": "a"})
    one.append({"p1": "I refuse"})
    one.append({"p3": "kept"})
    head, line, rest = one.path.read_bytes().split(b"\n", 2)
    assert old in line
    one.path.write_bytes(head + b"\n" + line.replace(old, new) + b"\n" + rest)
    assert one.read() == {"p3": "kept"}
    assert "computed again" in caplog.text
    one.append({"p1": "again"})
    assert one.read() == {"p1": "again", "p3": "kept"}


def test_a_planted_line_does_not_come_before_a_true_one(tmp_path: Path) -> None:
    """Who can write the folder and has no key can compute every digest, but no seal."""
    one = ResumeLog(tmp_path, {"model": "a"})
    one.append({"p1": "true"})
    head, line, _ = one.path.read_bytes().split(b"\n")
    row = json.loads(line) | {"value": "planted"}
    for check in (digest_json(["p1", "planted"]), row["seal"]):
        planted = canonical_json(row | {"seal": check, "check": check})
        one.path.write_bytes(b"\n".join([head, planted, line, b""]))
        assert one.read() == {"p1": "true"}
