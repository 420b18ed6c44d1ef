"""The evidence pack: every clause points to fields that exist, what is missing is said, nothing in the page can run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import LedgerError, ParamsError
from safegene.ledger.keys import load_signer
from safegene.ledger.promotion import record_refusal
from safegene.ledger.record import FIELDS
from safegene.ledger.rules import PromotionClaim
from safegene.pipeline.stages.promote import revoke
from safegene.report.clauses import INSTRUMENTS
from safegene.report.pack import write_pack
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run
from tests.factories.ledger import TARGET, attempt, ledger_of, make_workspace, records
from tests.factories.runs import HOSTILE


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A pass, a refusal whose reason is hostile, and a revocation."""
    ws = make_workspace(tmp_path_factory.mktemp("pack") / "ws")
    assert attempt(ws, alpha=1.0) == "pass"
    ledger = ledger_of(ws)
    claim = PromotionClaim(TARGET, "error", HOSTILE, {}, {"run": {"actor": HOSTILE}, "datasets": {}, "vector": {}})
    record_refusal(ledger, load_signer(ledger.keys), claim, "production")
    revoke(ws, read_manifest(ws.aligned).digest, "poisoned")
    return ws


@pytest.fixture(scope="module")
def pack(ws: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(ws, TARGET, tmp_path_factory.mktemp("out") / "pack").parent


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def evidence(pack: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((pack / "evidence.json").read_bytes())
    return content


def test_every_clause_points_to_fields_that_records_have() -> None:
    named = {field for instrument in INSTRUMENTS for clause in instrument.clauses for field in clause.fields}
    assert named - {"history", "signatures"} <= set(FIELDS)
    assert set(FIELDS) <= named, "every field is evidence for something"


def test_every_law_and_standard_that_the_project_names_is_mapped() -> None:
    numbers = {one.short: " ".join(clause.number for clause in one.clauses) for one in INSTRUMENTS}
    articles = {int(number) for number in re.findall(r"\b\d+\b", numbers["AI Act, Article"].replace("(6)", ""))}
    assert articles == {9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 26, 53, 72, 73}
    assert {text[0] for text in numbers["AI Act, Annex IV"].split()} == set("123456")
    assert "section 1" in numbers["AI Act, Annex XI"]
    assert "A.7.5" in numbers["ISO/IEC 42001"]
    assert numbers["ISO/IEC 42001"].count("A.6.2") == 7
    assert {"NIST AI 600-1", "Colorado SB 26-189", "California SB 53"} <= set(numbers)


def test_what_is_missing_is_listed_with_its_reason_and_its_clauses(ws: Workspace, pack: Path) -> None:
    content = evidence(pack)
    fields = records(ws)[2].predicate.fields()
    absent = {name: field["not_recorded"] for name, field in fields.items() if "not_recorded" in field}
    missing = {item["place"]: item for item in content["missing"]}
    assert absent
    assert {name: missing[name]["reason"] for name in absent} == absent
    assert "AI Act, Article: 18, 19 and 26(6)" in missing["retention"]["clauses"]
    clauses = {(one["short"], item["subject"]): item for one in content["instruments"] for item in one["clauses"]}
    assert clauses["Colorado SB 26-189", "intended and inappropriate uses"]["state"] == "not recorded"
    assert clauses["AI Act, Article", "data and data governance"]["state"] == "recorded"
    changes = clauses["AI Act, Annex IV", "changes through the lifecycle"]
    assert (changes["state"], changes["not_recorded"]) == ("partly recorded", ["change.summary"])


def test_it_is_evidence_and_no_claim(pack: Path) -> None:
    text = " ".join(Tags((pack / "index.html").read_text()).text.split())
    assert not re.search(r"complian|complies|conform", text, re.I)
    assert "It is no statement that a law or a standard is complied with" in text
    assert "The duties for high-risk systems are reported as moved to December 2027." in text


def test_the_folder_holds_the_signed_records_and_the_keys(ws: Workspace, pack: Path) -> None:
    written = {path.name: path.read_bytes() for path in (pack / "records").iterdir()}
    folder = ws.root / "ledger" / "records"
    assert written == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (pack / "ledger.pub").read_bytes() == (ws.root / "ledger.pub").read_bytes()
    content = evidence(pack)
    assert [one["outcome"] for one in content["history"]] == ["revocation", "error", "pass"]
    assert (content["live"], content["release"]) == (True, records(ws)[2].release)
    assert set(content["fields"]) == set(FIELDS)


def test_nothing_in_the_page_can_run_or_ask_for_anything(pack: Path) -> None:
    page = (pack / "index.html").read_text()
    parsed = Tags(page)
    assert not {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in parsed.tags}
    assert [tag for tag, _ in parsed.tags].count("style") == 1
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "<script>document.title='owned'</script>" in parsed.text
    assert not [character for character in page if character in "\x1b\u202e\u2066\u200b"]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {(attrs["href"] or "")[1:] for tag, attrs in parsed.tags if tag == "a"} <= set(ids)
    names = [tag for tag, _ in parsed.tags]
    assert names.count("table") == names.count("caption") > 0
    scrolled = [attrs for _, attrs in parsed.tags if attrs.get("class") == "scroll"]
    assert all(attrs.get("tabindex") == "0" and attrs.get("aria-labelledby") for attrs in scrolled)


def test_a_record_without_artefacts_has_a_pack_too(ws: Workspace, tmp_path: Path) -> None:
    content = evidence(write_pack(ws, "1", tmp_path / "refused").parent)
    assert (content["outcome"], content["live"], content["release"]) == ("error", False, None)
    missing = {item["place"]: item["reason"] for item in content["missing"]}
    assert missing["rates"] == "nobody gave it"


def test_it_overwrites_nothing_and_a_revocation_has_none(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(ParamsError, match="expected a new or empty folder"):
        write_pack(ws, TARGET, tmp_path)
    with pytest.raises(LedgerError, match="of outcome 'revocation'"):
        write_pack(ws, "2", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_command_prints_the_page(ws: Workspace, tmp_path: Path) -> None:
    shown = run(ws.root, "audit", "pack", TARGET, "--out", str(tmp_path / "pack")).stdout
    assert shown == f"{tmp_path / 'pack' / 'index.html'}\n"
