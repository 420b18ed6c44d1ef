"""The site builds strictly and asks no network for anything; every relative link of every page leads to a file."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=[\"']?(https?:)?//[^\"'>\s]+", re.I)
PASSAGE = re.compile(r"```.*?```", re.S)


def test_every_relative_link_leads_to_a_file(pages: list[Path]) -> None:
    broken, seen = list[str](), 0
    for page in pages:
        for link in LINK.findall(PASSAGE.sub("", page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", link) or link.startswith("#"):
                continue
            seen += 1
            if not (page.parent / link.split("#")[0]).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken
    assert seen > 50


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    offline = {"NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 30
    text = {path: path.read_text(encoding="utf-8") for path in built}
    assert not [(path.name, found.group()) for path, page in text.items() for found in LOADED.finditer(page)]
    assert not [path.name for path, page in text.items() if "<!-- generated:" in page]


def test_a_generated_part_is_there_or_the_file_says_where_it_is(pages: list[Path], reference: ModuleType) -> None:
    asked, kept = 0, list[str]()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = reference.MARK.findall(text)
        assert text.count("<!-- generated:") == len(found), f"{page}: a part without <!-- end -->"
        for name, shown in found:
            asked += 1
            if shown.startswith("*In this file"):
                site = f"site/{page.relative_to(ROOT / 'docs').with_suffix('.html').as_posix()}"
                assert site in " ".join(shown.split()), page
            else:
                kept.append(name)
                wanted = reference.PARTS[name]()
                assert shown.strip() == wanted, f"{page}: put this between the marks of {name}:\n\n{wanted}\n"
    assert asked == len(reference.PARTS)
    assert sorted(kept) == ["pools", "row", "sets"]


def test_the_makefile_builds_the_same(pages: list[Path]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "mkdocs build --strict" in makefile


def test_the_gate_page_says_how_many_prompts_a_pass_needs() -> None:
    from safegene.gate.decision import level_share
    from safegene.gate.statistics import betting_upper

    page = " ".join((ROOT / "docs" / "explanation" / "gate.md").read_text(encoding="utf-8").split())
    found = re.search(r"margin of 5 points after (\d+) behaviours and one of 2 points after (\d+) task", page)
    assert found is not None
    for asked, margin in zip(map(int, found.groups()), (0.05, 0.02), strict=True):
        level = 0.05 * level_share(1)
        assert betting_upper([0.0] * asked, level) <= margin < betting_upper([0.0] * (asked - 15), level)
