"""A disk that is full at any write: one sentence that says what is true, nothing lost, and the next attempt works."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safegene.checkpoints.sources import fingerprint
from safegene.errors import SafegeneError, as_safegene_error
from safegene.ledger.audit import audit_workspace
from safegene.ledger.pointers import SEEN
from safegene.pipeline.stages.promote import pin_incumbent, promote, record_error, resolve, revoke, rollback
from safegene.workspace.costs import cost_of, note_cost
from safegene.workspace.layout import Workspace
from safegene.workspace.resume_log import ResumeLog
from tests.factories.commands import run
from tests.factories.evaluation import PARAMS, Counter, World
from tests.factories.full_disk import full_disk
from tests.factories.ledger import TARGET, attempt, live_digest, make_candidate, make_verdict, make_workspace
from tests.factories.llamas import save_llama

INTERRUPTED = re.compile("was interrupted|its writer stopped")
Action = Callable[[Workspace], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one live release and a second candidate, which its verdict lets through."""
    folder = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGENE_CACHE", str(folder / "cache"))
        ws = make_workspace(folder / "ws")
        attempt(ws)
        attempt(ws, alpha=2.0)
        make_candidate(ws, alpha=3.0)
        pin_incumbent(ws, TARGET)
        make_verdict(ws)
    return ws


@pytest.fixture
def fresh(original: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Workspace]:
    numbers = iter(range(10_000))
    shutil.copytree(original.root.with_name("cache"), tmp_path / "cache")  # with the seals of the artefacts
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))

    def make() -> Workspace:
        name = str(next(numbers))
        monkeypatch.setenv("SAFEGENE_STATE", str(tmp_path / f"state-{name}"))  # each copy is a ledger of its own
        return Workspace(Path(shutil.copytree(original.root, tmp_path / name)))

    return make


def _revoke(ws: Workspace) -> object:
    return revoke(ws, str(live_digest(ws)), "a reason")


def _pin(ws: Workspace) -> object:
    ws.incumbent(TARGET).unlink(missing_ok=True)
    return pin_incumbent(ws, TARGET)


ACTIONS: dict[str, Action] = {
    "promote": lambda ws: promote(ws, TARGET),
    "rollback": lambda ws: rollback(ws, TARGET),
    "revoke": _revoke,
    "pin": _pin,
    "record an error": lambda ws: record_error(ws, TARGET, SafegeneError("expected a, got b")),
}


def problems(ws: Workspace) -> list[str]:
    """What an audit finds in the ledger besides a revocation; the second candidate itself is on no record yet."""
    found = audit_workspace(ws).problems
    return [problem for problem in found if f"{ws.data}/" not in problem and "revoked" not in problem]


@pytest.mark.parametrize("name", ACTIONS)
def test_the_disk_of_the_workspace_is_full_at_any_write(fresh: Callable[[], Workspace], name: str) -> None:
    act, counted = ACTIONS[name], fresh()
    with full_disk(counted.root) as disk:
        act(counted)
    assert disk.writes
    for room in range(disk.writes):
        ws = fresh()
        before = live_digest(ws)
        said = ""
        with full_disk(ws.root, room=room):
            try:
                act(ws)
            except (SafegeneError, OSError) as error:
                said = as_safegene_error(error).message
        after = live_digest(ws)
        assert "\n" not in said
        if after != before:  # it is live: whatever failed after that, the sentence says so
            assert not said or "record" in said
            assert not said or SEEN in said or "live, but then" in said, said
        elif said:
            assert "No space left" in said or "full disk" in said
        assert [problem for problem in problems(ws) if not INTERRUPTED.search(problem)] == []
        if after == before or problems(ws):
            act(ws)  # the disk has room again
        assert not problems(ws)


def test_a_promotion_that_only_its_memory_did_not_reach_is_said_to_be_live(fresh: Callable[[], Workspace]) -> None:
    ws = fresh()
    draft = ws.root / f".{SEEN}.{os.getpid()}.draft"
    with full_disk(draft, room=0), pytest.raises(SafegeneError, match=f"promoted to production.*{SEEN}") as caught:
        promote(ws, TARGET)
    assert caught.value.record
    assert live_digest(ws) == resolve(ws, TARGET).release


def test_a_full_cache_fails_no_read(fresh: Callable[[], Workspace], tmp_path: Path) -> None:
    ws = fresh()
    model = save_llama(tmp_path / "model")
    with full_disk(tmp_path / "cache", room=0) as disk:
        assert resolve(ws, TARGET).release == live_digest(ws)
        assert not problems(ws)
        promote(ws, TARGET)
        log = ResumeLog(tmp_path / "cache" / "replies", {"a": 1})
        log.append({"key": 1})
        assert log.read() == {}
        assert fingerprint(f"file://{model}").startswith("sha256:")
    assert disk.writes
    with full_disk(ws.root, room=0):
        note_cost(ws.root, str(live_digest(ws)), "calibrate", 1.0)
    assert cost_of(ws.root, str(live_digest(ws))) is None


def test_a_full_cache_does_not_stop_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    world = World(tmp_path)
    with full_disk(tmp_path / "cache" / "replies", room=0) as replies:
        world.evaluate(params=PARAMS)
    assert replies.writes
    counter = world.generate = Counter()
    world.evaluate(out="again")
    assert counter.prompts  # nothing was kept
    assert (tmp_path / "out" / "judgements.jsonl").read_bytes() == (
        tmp_path / "again" / "judgements.jsonl"
    ).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB, where this process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_commands_on_a_real_full_disk_end_in_one_sentence(
    original: Workspace, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEGENE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SAFEGENE_CACHE", str(shutil.copytree(original.root.with_name("cache"), tmp_path / "cache")))
    ws = Workspace(Path(shutil.copytree(original.root, small_disk / "ws")))
    filler = small_disk / "filler"
    commands = (("promote", TARGET), ("report",), ("rollback", TARGET), ("status",), ("resolve", TARGET))
    for free in (0, 8192, 20480):
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                file.truncate(file.tell() - free)
        for command in commands:
            done = run(ws.root, *command, code=(0, 1))
            assert "Traceback" not in done.stderr
            assert done.returncode == 0 or "error " in done.stderr
            if command[0] in ("status", "resolve"):
                assert done.returncode == 0, done.stderr
    filler.unlink()
    assert all("was interrupted" in problem for problem in problems(ws))
    attempt(ws, alpha=4.0)
    rollback(ws, TARGET)
    assert not problems(ws)
