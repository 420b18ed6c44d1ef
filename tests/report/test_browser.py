"""A real browser draws the report: it asks for nothing, runs nothing, and can be read by everybody."""

import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest

from safegene.report.server import PageHandler, site_server
from safegene.report.site import Site, write_site
from scripts.browser import PROGRAM, Page, Scheme, open_browser
from tests.factories.portfolio import make_portfolio, name_of
from tests.factories.runs import Sample

AXE = os.environ.get("SAFEGENE_TEST_AXE", "")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on PATH: the page was not tried in a browser"),
]
needs_axe = pytest.mark.skipif(not AXE, reason="SAFEGENE_TEST_AXE names no axe.min.js: accessibility was not checked")
PAGES = ("overview", "hostile", "many", "refused")
Served = tuple[dict[str, str], list[str]]
VIOLATIONS = "axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))]))"


@pytest.fixture(scope="module")
def site(sample: Sample) -> Site:
    """Pages with hostile replies, and a history of many records beside them."""
    return write_site(sample.ws, live=sample.live("sentiment"))


@pytest.fixture(scope="module")
def served(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Name of a page -> its address, and every path that was asked for."""
    many = write_site(make_portfolio(tmp_path_factory.mktemp("portfolio") / "ws", 7))
    asked: list[str] = []
    with site_server(site, 0) as one, site_server(many, 0) as two:
        for server in (one, two):
            server.RequestHandlerClass.parse_request = counting(asked)  # type: ignore[attr-defined]
            Thread(target=server.serve_forever, daemon=True).start()
        first, second = (f"http://127.0.0.1:{server.server_address[1]}/" for server in (one, two))
        yield (
            {
                "overview": first,
                "hostile": f"{first}targets/adversarial.html",
                "many": second,
                "refused": f"{second}targets/{name_of(2)}.html",
            },
            asked,
        )
        one.shutdown()
        two.shutdown()


def counting(asked: list[str]) -> Callable[[PageHandler], bool]:
    """A handler's ``parse_request`` that remembers the paths."""

    def parse(self: PageHandler) -> bool:
        parsed = BaseHTTPRequestHandler.parse_request(self)
        asked.append(self.path)
        return parsed

    return parse


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser(str(PROGRAM)) as tab:
        yield tab


def test_it_asks_for_nothing_and_runs_nothing(browser: Page, served: Served) -> None:
    pages, asked = served
    for name, path in (("overview", "/"), ("hostile", "/targets/adversarial.html")):
        asked.clear()  # of other tests
        browser.show(pages[name], width=1440)
        assert asked == [path]
        assert not [one for one in browser.events if one["method"].startswith(("Log.", "Runtime."))]
        assert browser.run("document.scripts.length") == 0
    assert browser.run("document.title") == "adversarial, Refused · safegene"
    assert browser.run("document.querySelectorAll('svg').length") > 8
    browser.show("data:text/html,<script>console.log(1)</script>", width=400)
    assert [one for one in browser.events if one["method"].startswith("Runtime.")]  # it would have been seen


def test_links_lead_to_the_page_of_a_target_and_back(browser: Page, served: Served) -> None:
    browser.show(served[0]["many"], width=390)
    links = browser.run("[...document.querySelectorAll('.portfolio a')].map(a => a.href)")
    assert len([link for link in links if "/targets/" in link]) == 7
    browser.show(links[0], width=390)
    assert browser.run("document.querySelector('.kicker a').href") == served[0]["many"] + "index.html"
    browser.run("document.querySelector('svg[role=group] a').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.run("document.querySelector(':target').tagName") == "LI"


def axe() -> str:
    """The script of axe-core."""
    return Path(AXE).read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("page", PAGES)
def test_nothing_sticks_out_and_what_scrolls_can_have_the_focus(
    browser: Page, served: Served, width: int, scheme: Scheme, page: str
) -> None:
    browser.show(served[0][page], width=width, scheme=scheme)
    dark = browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 && one.ariaLabel)")


@pytest.mark.parametrize("width", [620, 761, 960, 1161])
def test_the_overview_fits_windows_between(browser: Page, served: Served, width: int) -> None:
    browser.show(served[0]["many"], width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(browser: Page, served: Served, width: int, scheme: Scheme, page: str) -> None:
    browser.show(served[0][page], width=width, scheme=scheme)
    browser.run(f"{axe()}; true")
    assert browser.run(VIOLATIONS) == []


@needs_axe
def test_axe_would_find_text_of_low_contrast(browser: Page) -> None:
    faint = "<p style='color:%23999'>faint</p>"
    browser.show(f"data:text/html,<html lang=en><title>x</title><main><h1>x</h1>{faint}</main>", width=390)
    browser.run(f"{axe()}; true")
    assert [name for name, _ in browser.run(VIOLATIONS)] == ["color-contrast"]
