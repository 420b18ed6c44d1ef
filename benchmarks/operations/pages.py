"""The report of 60 targets: ``python -m benchmarks.operations.pages``, a part of ``make bench-operations``.

The targets' verdicts are the gate's and their records the ledger's, on judgements that are made up; no model runs. The
browser's part needs a Chromium, and ``SAFEGENE_TEST_AXE`` for accessibility; without them its figures are left out.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import Figure, markdown, measured_at, new_figure, publish, write
from safegene.report.site import Site, write_site
from safegene.workspace.layout import Workspace
from scripts.browser import PROGRAM, Scheme, file_url, open_browser
from tests.factories.ledger import attempt
from tests.factories.portfolio import make_portfolio, name_of

COMMAND = "python -m benchmarks.operations.pages"
TARGETS = 60
VIOLATIONS = "axe.run().then(found => found.violations.length)"
EXPLAINED = (
    f"A workspace of {TARGETS} targets, 0 to 3 attempts each. CPU seconds of `write_site`, which `safegene report` and "
    "every run call: reading and verifying every artefact and record, and drawing. A page is drawn again only where "
    "what it shows has changed. The judgements are few (120 or 480 prompts): more take longer to verify and to draw."
)


def main() -> None:
    """Measure, and write ``pages.json`` and the section of RESULTS.md."""
    with TemporaryDirectory(prefix="safegene-pages-", ignore_cleanup_errors=True) as name:
        for variable in ("SAFEGENE_KEYS", "SAFEGENE_STATE", "SAFEGENE_CACHE"):
            folder = Path(name) / variable
            folder.mkdir(mode=0o700)
            os.environ[variable] = str(folder)
        figures = measure(make_portfolio(Path(name) / "ws", TARGETS))
    write(Path(__file__).with_suffix(".json"), figures)
    publish("operations-pages", "The report of 60 targets", measured_at(COMMAND), f"{EXPLAINED}\n\n{markdown(figures)}")


def measure(ws: Workspace) -> list[Figure]:
    """All figures of a workspace that has no pages yet."""
    first, site = _timed(ws)
    again, same = _timed(ws)
    attempt(ws, name_of(0), alpha=9.0)
    one, changed = _timed(ws)
    size = site.index.stat().st_size
    largest = max((site.folder / page).stat().st_size for page in site.pages)
    return [
        _held("first build, CPU", round(first, 2), "s", "<= 10 s", first <= 10),
        _held("unchanged, CPU", round(again, 2), "s", "<= 2 s", again <= 2),
        _held("unchanged, pages drawn", len(same.drawn), "pages", "1", len(same.drawn) == 1),
        _held("one target changed, CPU", round(one, 2), "s", "", None),
        _held("one target changed, pages drawn", len(changed.drawn), "pages", "2", len(changed.drawn) == 2),
        _held("the overview", size, "bytes", "< 300000", size < 300_000),
        _held("the largest page", largest, "bytes", "< 300000", largest < 300_000),
        *_in_browser(site),
    ]


def _timed(ws: Workspace) -> tuple[float, Site]:
    start = time.process_time()
    site = write_site(ws)
    return time.process_time() - start, site


def _in_browser(site: Site) -> Iterator[Figure]:
    axe = os.environ.get("SAFEGENE_TEST_AXE")
    if PROGRAM is None or not axe:
        return
    script, schemes = Path(axe).read_text(encoding="utf-8"), list[Scheme](("light", "dark"))
    found = sticking = 0
    with open_browser(PROGRAM) as tab:
        for page in site.pages[:2]:
            for width, scheme in ((width, scheme) for width in (390, 1440) for scheme in schemes):
                tab.show(file_url(site.folder / page), width=width, scheme=scheme)
                sticking += tab.run("document.documentElement.scrollWidth") > width
                tab.run(f"{script}; true")
                found += tab.run(VIOLATIONS)
    where = "overview and a target at 390 and 1440 pixels, light and dark"
    yield _held(f"axe-core violations: {where}", found, "violations", "0", found == 0)
    yield _held(f"wider than the window: {where}", sticking, "pages", "0", sticking == 0)


def _held(name: str, value: float, unit: str, goal: str, holds: bool | None) -> Figure:
    return new_figure(f"{TARGETS} targets: {name}", value, unit, command=COMMAND, goal=goal, holds=holds)


if __name__ == "__main__":
    main()
