"""A real browser draws the report: it asks for nothing, runs nothing, and can be read by everybody."""

import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from scripts.browser import PROGRAM, Page, Scheme, open_browser

AXE = os.environ.get("SAFEGENE_TEST_AXE", "")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on PATH: the page was not tried in a browser"),
]
needs_axe = pytest.mark.skipif(not AXE, reason="SAFEGENE_TEST_AXE names no axe.min.js: accessibility was not checked")
VIOLATIONS = "axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))]))"


class Counting(BaseHTTPRequestHandler):
    """Serves one page and remembers every path that was asked for."""

    page = b""
    asked: list[str]

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.page if self.path == "/" else b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def served(page: str) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    kind = type("Served", (Counting,), {"page": page.encode(), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser(str(PROGRAM)) as tab:
        yield tab


def test_it_asks_for_nothing_and_runs_nothing(browser: Page, served: tuple[str, list[str]]) -> None:
    url, asked = served
    asked.clear()  # of other tests
    browser.show(url, width=1440)
    assert asked == ["/"]
    assert not [one for one in browser.events if one["method"].startswith(("Log.", "Runtime."))]
    shown = browser.run("document.title").replace("\u00a0", " ")
    assert shown == "4 fine-tunes: 1 promoted, 1 refused, 2 not run yet · safegene"
    assert browser.run("document.scripts.length") == 0
    assert browser.run("document.querySelectorAll('svg').length") > 10
    browser.show("data:text/html,<script>console.log(1)</script>", width=400)
    assert [one for one in browser.events if one["method"].startswith("Runtime.")]  # it would have been seen


def axe() -> str:
    """The script of axe-core."""
    return Path(AXE).read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_sticks_out_and_what_scrolls_can_have_the_focus(
    browser: Page, served: tuple[str, list[str]], width: int, scheme: Scheme
) -> None:
    browser.show(served[0], width=width, scheme=scheme)
    dark = browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 && one.ariaLabel)")


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing(browser: Page, served: tuple[str, list[str]], width: int, scheme: Scheme) -> None:
    browser.show(served[0], width=width, scheme=scheme)
    browser.run(f"{axe()}; true")
    assert browser.run(VIOLATIONS) == []


@needs_axe
def test_axe_would_find_text_of_low_contrast(browser: Page) -> None:
    faint = "<p style='color:%23999'>faint</p>"
    browser.show(f"data:text/html,<html lang=en><title>x</title><main><h1>x</h1>{faint}</main>", width=390)
    browser.run(f"{axe()}; true")
    assert [name for name, _ in browser.run(VIOLATIONS)] == ["color-contrast"]
