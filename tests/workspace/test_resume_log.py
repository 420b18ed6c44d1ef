import shutil
from pathlib import Path

import pytest

from safegene.errors import DigestMismatch
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


def test_a_journal_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    weak, strong = ResumeLog(tmp_path, {"model": "weak"}), ResumeLog(tmp_path, {"model": "strong"})
    strong.append({"p": "I refuse"})
    shutil.copy(strong.path, weak.path)
    with pytest.raises(DigestMismatch, match="got another one"):
        weak.read()


@pytest.mark.parametrize(("old", "new"), [(b"I refuse", b"I comply"), (b'"p1"', b'"p2"'), (b'{"check"', b'["check"')])
def test_a_changed_line_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    one = ResumeLog(tmp_path, {"model": "a"})
    one.append({"p1": "I refuse"})
    one.path.write_bytes(one.path.read_bytes().replace(old, new))
    with pytest.raises(DigestMismatch):
        one.read()
