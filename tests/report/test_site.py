"""The pages of many targets: what the overview says, what is drawn again, how a lineage is walked, what is served."""

import re
import shutil
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest

from safegene.errors import ParamsError
from safegene.pipeline.stages.promote import rollback
from safegene.report.records import read_records
from safegene.report.server import site_server
from safegene.report.site import Site, write_site
from safegene.report.state import read_state
from safegene.report.trends import over_time, trend
from safegene.workspace.costs import note_cost
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import Targets, save_targets
from tests.factories.ledger import attempt
from tests.factories.pages import parsed, plain, target_page
from tests.factories.portfolio import make_portfolio, name_of

SEVEN = 7  # the least number of targets with every state
REFUSED, REPLACED, NEW, REVOKED = name_of(2), name_of(3), name_of(5), name_of(6)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_portfolio(tmp_path_factory.mktemp("portfolio") / "ws", SEVEN)


@pytest.fixture(scope="module")
def site(ws: Workspace) -> Site:
    return write_site(ws)


@pytest.fixture
def copy(ws: Workspace, site: Site, tmp_path: Path) -> Workspace:
    """A private copy whose pages have been drawn where it lies."""
    shutil.copytree(ws.root, tmp_path / "ws")
    copy = Workspace(tmp_path / "ws")
    assert len(write_site(copy).drawn) == SEVEN + 1, "messages name the place of an artefact"
    return copy


def row(site: Site, name: str) -> str:
    """A target's row of the overview, as text."""
    page = site.index.read_text()
    start = page.index(f'<a href="targets/{name}.html">')
    return plain(page[start : page.index("</tr>", start)])


def test_live_and_candidate_are_told_apart(site: Site) -> None:
    text = plain(site.index.read_text())
    assert "7 fine-tunes: 2 promoted, 2 refused, 1 inconclusive, 1 unknown, 1 not run yet" in text
    assert re.search(r"100.0% 96.9 to 100.0 Another candidate 0.8% 0.1 to 4.6 ?record \d+, ", row(site, REFUSED))
    assert "The candidate" in row(site, name_of(0))
    assert "Revoked" in row(site, REVOKED)
    assert "not measured Nothing no record" in row(site, NEW)
    assert "Live 4 of 7" in text


def test_the_first_decision_is_that_which_somebody_must_look_at(site: Site) -> None:
    page = site.index.read_text()
    order = re.findall(r'<tbody role="rowgroup" id="([\w-]+)">', page)
    assert order == ["unknown", "refused", "inconclusive", "not-run-yet", "promoted"]
    assert "100.0% of harmful prompts are answered harmfully (20.0% allowed). Release" in plain(page)


def test_reuse_costs_and_records_are_on_the_overview(site: Site) -> None:
    text = plain(site.index.read_text())
    assert "Reuse 6 fine-tunes repaired with the workspace's one safety vector" in text
    assert "One more 27 CPU s" in text
    assert re.search(r"calibrate ?6 ?6 ?87.0 ?– ?–", text)
    assert re.search(r"compress ?1 ?0 ?not measured ?– ?–", text), "what was not measured is no zero"
    assert "revocation all channels" in text
    assert "Harm on direct prompts: harm is shown: 100.0%" in text, "the names of endpoints are in words"


def test_sixty_targets_stay_below_300_kb(ws: Workspace, site: Site, tmp_path: Path) -> None:
    """Each further target adds the size of one row of the overview."""
    whole = site.index.stat().st_size
    rows = max(len(part) for part in re.split(r'(?=<th scope="row" role="rowheader">)', site.index.read_text())[1:-1])
    assert whole + (60 - SEVEN) * rows < 300_000


def test_an_unchanged_page_is_not_drawn_again(copy: Workspace) -> None:
    before = {path: path.read_bytes() for path in copy.reports.rglob("*.html")}
    assert write_site(copy).drawn == ("index.html",)
    assert {path: path.read_bytes() for path in copy.reports.rglob("*.html")} == before


def test_only_the_page_of_what_changed_is_drawn_again(copy: Workspace) -> None:
    note_cost(copy.root, str(read_manifest(copy.candidate(REFUSED)).digest), f"calibrate@{REFUSED}", 99.0)
    assert write_site(copy).drawn == ("index.html", f"targets/{REFUSED}.html")
    attempt(copy, REPLACED, alpha=4.0)
    assert write_site(copy).drawn == ("index.html", f"targets/{REPLACED}.html")
    (copy.vector / "vector.json").write_text("{}")  # every lineage names it
    assert len(write_site(copy).drawn) == SEVEN + 1
    assert "expected sha256:" in plain(target_page(copy.reports / "index.html", REFUSED))


def test_a_page_that_somebody_changed_is_drawn_again_and_an_old_one_removed(copy: Workspace) -> None:
    page = copy.reports / "targets" / f"{REFUSED}.html"
    page.write_text(page.read_text().replace("Refused", "Promoted"))
    theirs = copy.reports / "targets" / "notes.html"
    theirs.write_text("mine")
    assert write_site(copy).drawn == ("index.html", f"targets/{REFUSED}.html")
    assert "Refused" in page.read_text()
    rest = {name: entry for name, entry in copy.targets.targets.items() if name != REFUSED}
    save_targets(copy.targets_file, Targets(targets=rest))
    write_site(copy)
    assert not page.exists()
    assert theirs.read_text() == "mine"
    (copy.reports / ".drawn.json").write_text('{"../../params.yaml": ["k", "d"], "x": 3}')
    write_site(copy)
    assert (copy.root / "params.yaml").is_file()


def test_over_time_has_every_attempt_and_what_a_rollback_put_live_again(copy: Workspace) -> None:
    rollback(copy, REPLACED)
    points = over_time(REPLACED, read_records(copy), "production")
    assert [(point.outcome, point.live) for point in points] == [
        ("pass", True),
        ("pass", True),
        ("fail", False),
        ("rollback", True),
    ]
    assert points[0].rates["hrr"] == points[3].rates["hrr"]
    assert points[1].rates["hrr"].rate == pytest.approx(2 / 120)
    assert over_time(REPLACED, read_records(copy), "staging") == ()
    drawn = trend(points, "hrr", limit=0.2)
    assert drawn.count("<circle") == 3
    assert drawn.count('class="look fail"') == 1
    assert "record" in drawn
    assert "not measured on record" in trend((), "hrr")


def walk(page: str, start: str) -> set[str]:
    """Every step that can be reached from one by its links."""
    steps = {
        match[1]: set(re.findall(r'href="#step-([\w-]+)"', match[2]))
        for match in re.finditer(r'<li id="step-([\w-]+)".*?>(.*?)</li>', page, re.S)
    }
    seen, todo = set[str](), {start}
    while todo:
        seen |= todo
        todo = {link for step in todo for link in steps[step]} - seen
    return seen


@pytest.mark.parametrize(("name", "start"), [(name_of(0), "release"), (REFUSED, "live-release")])
def test_a_release_is_walked_to_its_data(site: Site, ws: Workspace, name: str, start: str) -> None:
    page = target_page(site.index, name)
    reached = walk(page, start)
    prefix = start.removesuffix("release")
    assert {prefix + part for part in ("record", "verdict", "candidate", "vector", "target")} <= reached
    if not prefix:
        data = {plain(f"<p {found}") for found in re.findall(r'id="step-data-\w+".*?</strong>', page, re.S)}
        assert len([step for step in reached if step.startswith("data-")]) == len(data) == 3
    for record in re.findall(r'id="step-live-record"><strong>Record (\d+)', page):
        assert f"named by record {record}" in plain(page)


def test_names_of_files_and_reasons_are_text(copy: Workspace) -> None:
    shutil.copy(copy.prompts / "gate.jsonl", copy.prompts / "<img src=x>\u202e.jsonl")
    page = write_site(copy).folder / "targets" / f"{REFUSED}.html"
    assert "data/prompts/<img src=x>⟨U+202E⟩.jsonl" in plain(page.read_text())
    assert "img" not in {tag for tag, _ in parsed(page.read_text()).tags}


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[int]:
    with site_server(site, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def answer(port: int, path: str, *, host: str = "", method: str = "GET") -> tuple[int, bytes, str | None]:
    link = HTTPConnection("127.0.0.1", port, timeout=10)
    link.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    got = link.getresponse()
    return got.status, got.read(), got.getheader("Content-Type")


def test_the_pages_are_served_and_nothing_else(server: int, site: Site) -> None:
    index = site.index.read_bytes()
    assert answer(server, "/") == answer(server, "/index.html?x=1") == (200, index, "text/html; charset=utf-8")
    assert answer(server, f"/targets/{REFUSED}.html")[:2] == (200, target_page(site.index, REFUSED).encode())
    assert answer(server, "/", method="HEAD")[:2] == (200, b"")
    for path in (
        "/.drawn.json",
        "/targets/",
        "/../params.yaml",
        "/%2e%2e/params.yaml",
        "//etc/passwd",
        "/targets/x.html",
    ):
        assert answer(server, path)[0] == 404
    assert answer(server, "/", method="POST")[0] == 501
    assert answer(server, "/", host="evil.example")[0] == 421
    assert answer(server, "/", host=f"localhost:{server}")[0] == 200


def test_a_port_that_is_taken_is_refused_with_what_helps(server: int, site: Site) -> None:
    with pytest.raises(ParamsError, match=f"expected a free port on 127.0.0.1, got {server}") as refused:
        site_server(site, server)
    assert "--port 0" in str(refused.value.remedy)


def test_harm_is_stated_only_where_all_that_is_live_has_a_rate(copy: Workspace) -> None:
    from dataclasses import replace

    from safegene.gate import Rate
    from safegene.report import portfolio

    def tile(rows: list[portfolio.TargetRow]) -> str:
        return next(value for title, value, _ in portfolio._tiles(rows, ()) if title == "Harm, at most")

    state, records = read_state(copy), read_records(copy)
    rows = [portfolio._row(target, records, "production") for target in state.targets]
    assert tile(rows).endswith("%")
    at = next(at for at, row in enumerate(rows) if row.live.tone == "pass")
    rows[at] = replace(rows[at], live=replace(rows[at].live, hrr=Rate(rate=None, interval=None)))
    assert tile(rows) == "unknown"
