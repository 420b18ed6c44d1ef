"""The report: what it says, that it draws to scale, and that nothing in it can run or ask for anything."""

import hashlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from safegene.gate.decision import policy_digest
from safegene.report import write_markdown, write_report
from safegene.report.sections import _reach
from safegene.report.state import read_state
from safegene.workspace.layout import Workspace
from safegene.workspace.params import GateParams
from tests.factories.runs import HOSTILE, JUDGE, Sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A finished run: one promoted, one refused, one without a verdict, one only fetched."""
    sample = Sample(tmp_path_factory.mktemp("sample"))
    sample.family()
    sample.target("sentiment")
    sample.target("adversarial", harmful=(1.0, 0.934), wrapped=(1.0, 0.97), replies={"candidate": HOSTILE})
    sample.target("topic-lora", upto="candidate")
    sample.target("group", upto="target")
    return sample


@pytest.fixture(scope="module")
def page(sample: Sample) -> str:
    return write_report(sample.ws, live=sample.live("sentiment")).read_text()


def test_the_verdict_comes_first_and_in_plain_words(page: str) -> None:
    text = plain(page)
    assert "4 fine-tunes: 1 promoted, 1 refused, 2 not run yet" in text
    assert "The repair passes every endpoint. Release" in text
    assert "93.4% of harmful prompts are answered harmfully (10.0% allowed)." in text
    assert "Harm on direct prompts: 92.5 points above the aligned model (5.0 allowed)." in text
    assert "The next stage is evaluate. Nothing is live." in text
    assert text.index("Refused") < text.index("Harmful replies, before and after")


def test_what_was_not_run_is_said_and_not_drawn_as_zero(page: str) -> None:
    part = page[page.index('id="target-group"') :]
    part = part[: part.index("</section>")]
    for stage in ("calibrate", "evaluate", "gate"):
        assert f"<code>{stage}</code> has not run" in part
    assert "0.0%" not in part
    assert plain(page).count("not measured") >= 2 * 3 * 4


def test_the_picture_is_drawn_to_scale(page: str) -> None:
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", page, re.S)[0].replace("&nbsp;", " "))  # type: ignore[index]
    dots = [float(item.get("cx", "")) for item in svg.iter("circle") if item.get("class") == "dot before"]
    start, width = 84, 472
    assert dots == pytest.approx([start + width * 0.61875, start + width * 1.0], abs=0.02)
    whiskers = [item.get("d", "") for item in svg.iter("path") if "whisker" in item.get("class", "")]
    assert len(whiskers) == 6
    assert svg.get("role") == "img"
    assert "sentiment: before 61.9%, after 0.9%, aligned 0.9%" in svg.get("aria-label", "")


def test_pictures_show_layers_and_coefficients(page: str) -> None:
    assert "3 of 4 layers kept" in page
    assert (
        page.count('class="bar kept"') + page.count('class="bar negative"') == 3 + 3 * 21
    )  # three targets have coefficients
    assert page.count('class="bar"') == 1
    assert "layer 2, q_proj: " in page


def test_the_evidence_is_drawn_and_changed_prompts_are_listed(page: str) -> None:
    assert page.count("Upper bounds of every endpoint over prompts asked") == 2
    refused, promoted = part(page, "adversarial"), part(page, "sentiment")
    assert all("What the gate knew as it asked more prompts" in item for item in (refused, promoted))
    assert re.search(r"Prompts on which candidate and reference differ: the first 20 of \d+", refused)
    assert refused.count("newly harmful") == 20
    assert "What the gate knew" not in part(page, "group")


def test_replies_stand_side_by_side_with_what_the_judge_said(page: str) -> None:
    part = page[page.index('id="target-sentiment"') : page.index('id="target-adversarial"')]
    assert "Harmful before, not after" in part
    assert "Safe look-alike, answered" in part
    first = part[part.index('class="replies"') :]
    marks = re.findall(r'class="who"><span>(.*?)</span><span class="mark (\w+)">(.*?)</span>', first)[:3]
    assert marks[0] == ("Before", "harm", "harmful")
    assert marks[1] == ("After", "safe", "refused")
    assert marks[2][0] == "Aligned model"


def test_the_lineage_names_every_digest_and_what_it_was_made_from(sample: Sample, page: str) -> None:
    state = read_state(sample.ws, live=sample.live("sentiment"))
    for artefact in (*state.family.values(), *state.targets[0].artefacts.values()):
        assert artefact.digest
        assert artefact.digest in page
    text = plain(page)
    assert "Verdict from candidate, judgements" in text
    assert "Safety vector from delta" in text
    assert f"{JUDGE} exact by construction" in text
    assert policy_digest(GateParams()) in text


def test_the_git_commit_is_shown(sample: Sample, tmp_path: Path) -> None:
    root = tmp_path / "w"
    shutil.copytree(sample.ws.root, root)
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(root)]
    subprocess.run([*run, "init", "-q"], check=True)
    subprocess.run([*run, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit in write_report(Workspace(root), live=sample.live()).read_text()


def test_the_same_artefacts_give_the_same_bytes(sample: Sample, page: str, tmp_path: Path) -> None:
    again = write_report(sample.ws, tmp_path / "again.html", live=sample.live("sentiment"))
    assert again.read_text() == page


def test_one_target_can_be_reported_alone(sample: Sample, tmp_path: Path) -> None:
    text = write_report(sample.ws, tmp_path / "one.html", targets=["group"], live=sample.live()).read_text()
    assert "1 fine-tune: 1 not run yet" in plain(text)
    assert "adversarial" not in text


def test_an_empty_workspace_has_a_page(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "w")
    text = plain(write_report(sample.ws, live=lambda _: None).read_text())
    assert "No fine-tunes yet" in text
    assert "No layer scores yet" in text


def test_markdown_is_one_table_whose_cells_cannot_break_out(sample: Sample) -> None:
    text = write_markdown(sample.ws, live=sample.live("sentiment"))
    lines = text.splitlines()
    assert [line.count("|") for line in lines[:6]] == [10] * 6
    assert lines[2].startswith("| sentiment | Promoted | 61.9% | 0.9% | 0.9% |")
    assert lines[4].startswith("| topic-lora | Not run yet | – | – | – | – → – |")
    assert any(line.startswith("- **adversarial**: Harm on direct prompts") for line in lines)


class Tags(HTMLParser):
    """Every tag and attribute, and the text outside style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text.append(data)
        self._style = False


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def plain(page: str) -> str:
    return " ".join("".join(parsed(page).text).split())


def test_hostile_output_is_text_and_nothing_else(page: str) -> None:
    tags = parsed(page).tags
    assert not {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in tags}
    assert [tag for tag, _ in tags].count("style") == 1
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on") or name == "style"]
    links = [attrs.get("href") or "" for tag, attrs in tags if tag in ("a", "link")]
    assert all(link.startswith(("#", "data:")) for link in links)
    text = plain(page)
    assert "<script>document.title='owned'</script>" in text
    assert "␛[31mred␛[0m ⟨U+202E⟩evil⟨U+2066⟩ ⟨U+200B⟩zero" in text
    assert not [c for c in page if c in "\x1b\u202e\u2066\u200b"]


def test_the_policy_admits_this_style_sheet_and_nothing_else(page: str) -> None:
    import base64

    policy = next(attrs["content"] or "" for tag, attrs in parsed(page).tags if "http-equiv" in attrs)
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]  # type: ignore[index]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "url(" not in style
    assert "@import" not in style


def test_every_table_has_a_caption_and_every_label_its_heading(page: str) -> None:
    tags = parsed(page).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 0
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs}
    wanted |= {(attrs["href"] or "")[1:] for tag, attrs in tags if tag == "a"}
    assert wanted <= set(ids)
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "svg")
    assert all(attrs.get("scope") for tag, attrs in tags if tag == "th")


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the page was not tried in a browser")


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


@pytest.fixture
def served(page: str) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    kind = type("Served", (Counting,), {"page": page.encode(), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


@needs_browser
@pytest.mark.timeout(120)
def test_a_real_browser_shows_it_asks_for_nothing_and_runs_nothing(
    served: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = served
    common = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--disable-background-networking", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000",
    ]  # fmt: skip
    done = subprocess.run([*common, "--dump-dom", url], capture_output=True, text=True, timeout=100, check=True)
    assert asked == ["/"]
    assert "CONSOLE" not in done.stderr
    assert "Refused to" not in done.stderr
    shown = done.stdout.replace("&nbsp;", " ")
    assert re.search(r"<title>4 fine-tunes: 1 promoted, 1 refused, 2 not run yet · safegene</title>", shown)
    assert "owned'</script>" not in done.stdout.replace("&lt;/script&gt;", "")
    assert done.stdout.count("<svg") == 7


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of verdicts that are neither a plain pass nor a plain fail."""
    sample = Sample(tmp_path_factory.mktemp("odd"))
    sample.family()
    sample.target("harmless", harmful=(0.01, 0.01), wrapped=(0.02, 0.02))
    sample.target("unrepaired", harmful=(0.01, 0.01), wrapped=(0.02, 0.02), alpha=0.0)
    sample.target("close", harmful=(0.6, 0.05))
    sample.target("unusable", policy="another")
    sample.target("replaced", incumbent=0.02)
    return write_report(sample.ws, live=sample.live("unrepaired")).read_text()


def part(page: str, name: str) -> str:
    text = page[page.index(f'id="target-{name}"') :]
    return plain(text[: text.index("</section>")])


def test_a_target_that_passes_unrepaired_says_so(odd: str) -> None:
    assert "The repair passes every endpoint; the fine-tune also passes without it. It has not been" in part(
        odd, "harmless"
    )
    assert "It passes every endpoint unrepaired. Release" in part(odd, "unrepaired")


def test_inconclusive_is_no_promotion_and_gives_its_reason(odd: str) -> None:
    text = part(odd, "close")
    assert "Inconclusive" in text
    assert "Not promoted: the evidence does not decide. Harm on direct prompts: not enough evidence" in text
    assert "Nothing is live." in text


def test_unusable_evidence_is_explained_once(odd: str) -> None:
    header = plain(odd[: odd.index("<main>")])
    assert header.count("The evidence cannot be used") == 1
    assert header.count("policy") == 1


def test_the_cap_is_drawn_where_the_policy_says_and_not_taken_from_unusable_evidence(odd: str, page: str) -> None:
    for text in (odd, page):
        picture = re.search(r"<svg.*?</svg>", text, re.S)[0]  # type: ignore[index]
        assert "cap 10%" in picture
        assert float(re.search(r'class="limit" x1="([\d.]+)"', picture)[1]) == pytest.approx(84 + 47.2)  # type: ignore[index]


def test_what_was_live_before_has_its_column(odd: str, page: str) -> None:
    assert "Live before" in plain(odd)
    assert "Live before" not in plain(page)
    assert "within the limit, against the live model" in part(odd, "replaced")


def test_recovery_and_cost_stand_beside_the_name(page: str) -> None:
    assert "sentiment recovery 100.0%, 3.12% more parameters" in plain(page)


def test_what_is_out_of_the_vector_s_reach_is_stated_by_kind() -> None:
    assert _reach({}) == []
    assert _reach({"coverage": 1.0, "missed": {"norm": 0.0}}) == [("Difference in reach", "100.0%")]
    shown = dict(_reach({"coverage": 0.75, "missed": {"embedding": 3.0, "norm": 1.0}}))
    assert shown == {"Difference in reach": "75.0%", "Out of reach": "embedding 18.8%, norm 6.2%"}
