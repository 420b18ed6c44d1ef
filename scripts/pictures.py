"""The pictures of the documentation, made again: ``python -m scripts.pictures DEMO``, where DEMO is a finished demo.

It works on a copy of the demo's workspace, and needs a Chromium and the keys and the cache that the demo was made with:
``status`` at 80 columns, the report (light, dark, narrow), that of 60 made-up targets, and in Prefect's own pages a run
with a refusal and a run that failed.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from flows.server import await_server, start_server
from safegene.report import write_report
from safegene.report.portfolio import page_of
from safegene.report.state import read_state
from safegene.report.status import table
from safegene.workspace.layout import Workspace
from scripts.browser import PROGRAM, Page, Scheme, file_url, open_browser
from tests.factories.portfolio import make_portfolio

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
REPORTS: tuple[tuple[str, int, int, Scheme], ...] = (
    ("report-light", 960, 1240, "light"),
    ("report-dark", 960, 1240, "dark"),
    ("report-narrow", 390, 1240, "light"),
)
DRAWN = (
    "document.querySelector('.flow-run') !== null && document.body.innerText.includes('Task Runs')"
    " && document.body.innerText.includes('INFO')"
)


def main(demo: Path) -> None:
    """Make every picture."""
    assert PROGRAM is not None, "expected a chromium on PATH"
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, open_browser(PROGRAM) as tab:
        ws = Workspace(shutil.copytree(demo, Path(folder) / "demo"))
        _status(ws)
        _safegene(ws, "", "gate", "show", "group", "--picture", str(PICTURES.parent / "tutorial" / "evidence.svg"))
        _reports(ws, Path(folder), tab)
        with _prefect(Path(folder)) as address:
            for name, run in _runs(ws, address):
                tab.show(f"{address.removesuffix('/api')}/runs/flow-run/{run}", width=1180, height=732)
                tab.wait(DRAWN)
                _save(_settled(tab), name)


def _reports(ws: Workspace, folder: Path, tab: Page) -> None:
    """The overview and a page of the demo, and the overview of many made-up targets."""
    index = write_report(ws, folder / "report")
    for name, width, height, scheme in REPORTS:
        tab.show(file_url(index), width=width, height=height, scheme=scheme)
        _save(tab.picture(), name)
    tab.show(file_url(index.parent / page_of("group")), width=960, height=1240, scheme="dark")
    tab.run("document.querySelector('#endpoints-group ~ figure').scrollIntoView()")
    _save(tab.picture(), "report-evidence-dark")
    tab.show(file_url(write_report(make_portfolio(folder / "many", 60))), width=1180, height=1180)
    _save(tab.picture(), "report-many")


def _status(ws: Workspace) -> None:
    """``safegene status`` at 80 columns: the terminal's text as SVG, without rich's font from elsewhere."""
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(table(read_state(ws).targets))
    drawn = console.export_svg(title="safegene status")
    start, end = drawn.index("@font-face"), drawn.index(".terminal-")
    drawn = drawn[:start] + drawn[end:].replace("Fira Code, ", "")
    (PICTURES / "status.svg").write_text(drawn, encoding="utf-8")


@contextmanager
def _prefect(folder: Path) -> Iterator[str]:
    """The address of a Prefect server with its pages and a database of its own."""
    os.environ |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server, address = start_server(pages=True)
    try:
        yield await_server(server, address)
    finally:
        server.terminate()
        server.wait()


def _runs(ws: Workspace, address: str) -> Iterator[tuple[str, str]]:
    """(name of a picture, id of a flow's run): the demo's targets once more, and a run that a bad row stops."""
    _safegene(ws, address, "run", "adversarial")
    yield "prefect-refused", _newest_run(address)
    rows = ws.prompts / "gate.jsonl"
    first, *others = rows.read_text(encoding="utf-8").splitlines()
    bad = json.dumps({**json.loads(first), "split": "train"})
    rows.write_text("\n".join([bad, *others]) + "\n", encoding="utf-8")
    _safegene(ws, address, "run", "adversarial")
    yield "prefect-failed", _newest_run(address)


def _settled(tab: Page) -> bytes:
    """A picture that did not change for ten seconds: nothing in the page says that its graph is drawn."""
    picture, same = tab.picture(), 0
    for _ in range(60):
        time.sleep(2)
        last, picture = picture, tab.picture()
        same = same + 1 if picture == last else 0
        if same == 5:
            return picture
    raise TimeoutError("expected a page that is drawn within two minutes, got one that still changes")


def _safegene(ws: Workspace, address: str, *words: str) -> None:
    command = [str(Path(sys.executable).parent / "safegene"), *words]
    subprocess.run(command, cwd=ws.root, env={**os.environ, "PREFECT_API_URL": address}, check=False)


def _newest_run(address: str) -> str:
    query: dict[str, Any] = {"sort": "START_TIME_DESC", "limit": 1}
    runs = httpx.post(f"{address}/flow_runs/filter", json=query, timeout=30).raise_for_status().json()
    return str(runs[0]["id"])


def _save(picture: bytes, name: str) -> None:
    (PICTURES / f"{name}.webp").write_bytes(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
