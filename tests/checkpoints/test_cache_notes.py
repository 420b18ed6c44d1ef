"""Notes of the cache are a memory only: where one is damaged or of another form, the work is done again."""

from pathlib import Path

import pytest

from safegene.checkpoints import sources
from safegene.workspace.params import FetchParams
from tests.factories.llamas import save_llama


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"files": 1, "digest": 2, "kind": 3}', b"\xff", b"[" * 50_000]
)
def test_a_note_of_another_form_is_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("safegene.checkpoints.sources.cache.SETTLED_S", -1e9)
    uri = f"file://{save_llama(tmp_path / 'llama')}"
    digest = sources.fetch(uri, limits=FetchParams()).digest
    notes = [*tmp_path.glob("cache/sources/*.json"), *tmp_path.glob("cache/stats/*.json")]
    assert len({note.parent.name for note in notes}) == 2
    for note in notes:
        note.write_bytes(content)
    assert sources.fetch(uri, limits=FetchParams()).digest == digest
