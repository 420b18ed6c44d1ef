"""The report: what it says, that it draws to scale, and that nothing in it can run or ask for anything."""

import hashlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from safegene.gate.decision import policy_digest
from safegene.report import write_markdown, write_report
from safegene.report.files import SelectionView
from safegene.report.graph import lineage_graph
from safegene.report.lineage import lineage
from safegene.report.page import _environment
from safegene.report.sections import _layers, _reach
from safegene.report.state import RecordedArtefact, read_state
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import Manifest
from safegene.workspace.params import GateParams
from tests.factories.pages import parsed, plain, section, whole
from tests.factories.runs import JUDGE, Sample


def test_the_verdict_comes_first_and_in_plain_words(page: str) -> None:
    text = plain(page)
    assert "4 fine-tunes: 1 promoted, 1 refused, 2 not run yet" in text
    assert "The repair passes every endpoint. Release" in text
    assert "93.4% of harmful prompts are answered harmfully (10.0% allowed)." in text
    assert "Harm on direct prompts: 92.5 points above the aligned model (5.0 allowed)." in text
    assert "The next stage is evaluate. Nothing is live." in text
    assert text.index("1 refused") < text.index("1 promoted the candidate passes"), "what to look at comes first"


def test_what_was_not_run_is_said_and_not_drawn_as_zero(page: str) -> None:
    part = page[page.index('id="target-group"') :]
    part = part[: part.index("</main>")]
    for stage in ("calibrate", "evaluate", "gate"):
        assert f"<code>{stage}</code> has not run" in part
    assert "0.0%" not in part
    assert plain(page).count("not measured") >= 2 * 3 * 4


def test_the_picture_is_drawn_to_scale(page: str) -> None:
    part = page[page.index('id="target-sentiment"') :]
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", part, re.S)[0].replace("&nbsp;", " "))  # type: ignore[index]
    dots = [float(item.get("cx", "")) for item in svg.iter("circle") if item.get("class") == "dot before"]
    start, width = 84, 472
    assert dots == pytest.approx([start + width * 0.61875], abs=0.02)
    whiskers = [item.get("d", "") for item in svg.iter("path") if "whisker" in item.get("class", "")]
    assert len(whiskers) == 3
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
    assert page.count(">prompts asked<") == 2 * 6
    refused, promoted = section(page, "adversarial"), section(page, "sentiment")
    assert all("What the gate knew as it asked more prompts" in item for item in (refused, promoted))
    assert re.search(r"Prompts on which candidate and reference differ: the first 20 of \d+", refused)
    assert refused.count("newly harmful") == 20
    assert "What the gate knew" not in section(page, "group")


def test_replies_stand_side_by_side_with_what_the_judge_said(page: str) -> None:
    part = page[page.index('id="target-sentiment"') : page.index('id="target-topic-lora"')]
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
    assert "Verdict from candidate, judgements sha256:" in text
    assert "Safety vector from delta sha256:" in text
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
    assert whole(write_report(sample.ws, tmp_path / "again", live=sample.live("sentiment"))) == page


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


def test_hostile_output_is_text_and_nothing_else(page: str) -> None:
    tags = parsed(page).tags
    assert not {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in tags}
    assert [tag for tag, _ in tags].count("style") == page.count("<!doctype html>") == 5
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on") or name == "style"]
    links = [attrs.get("href") or "" for tag, attrs in tags if tag in ("a", "link")]
    assert all(re.fullmatch(r"#[\w-]+|data:,|targets/[\w-]+\.html|\.\./index\.html", link) for link in links)
    text = plain(page)
    assert "<script>document.title='owned'</script>" in text
    assert "␛[31mred␛[0m ⟨U+202E⟩evil⟨U+2066⟩ ⟨U+200B⟩zero" in text
    assert not [c for c in page if c in "\x1b\u202e\u2066\u200b"]


def test_what_no_template_marks_is_escaped_all_the_same() -> None:
    written = _environment().from_string("{{ text }}{{ text|short }}").render(text="<b>'\"&")
    assert not set(written) & set("<>'\"")


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
    for one in page.split("<!doctype html>")[1:]:
        check_names(one)


def check_names(page: str) -> None:
    tags = parsed(page).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs}
    wanted |= {link[1:] for tag, attrs in tags if tag == "a" and (link := attrs["href"] or "").startswith("#")}
    assert wanted <= set(ids)
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in tags if tag == "svg")
    assert all(attrs.get("scope") for tag, attrs in tags if tag == "th")


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
    return whole(write_report(sample.ws, live=sample.live("unrepaired")))


def test_a_target_that_passes_unrepaired_says_so(odd: str) -> None:
    assert "The repair passes every endpoint; the fine-tune also passes without it. It has not been" in section(
        odd, "harmless"
    )
    assert "It passes every endpoint unrepaired. Release" in section(odd, "unrepaired")


def test_inconclusive_is_no_promotion_and_gives_its_reason(odd: str) -> None:
    text = section(odd, "close")
    assert "Inconclusive" in text
    assert "Not promoted: the evidence does not decide. Harm on direct prompts: not enough evidence" in text
    assert "Nothing is live." in text


def test_unusable_evidence_is_explained_once(odd: str) -> None:
    rows = plain(odd[odd.index('<table class="portfolio"') : odd.index("</table>")])
    assert rows.count("The evidence cannot be used") == 1
    assert rows.count("policy") == 1


def test_the_cap_is_drawn_where_the_policy_says_and_not_taken_from_unusable_evidence(odd: str, page: str) -> None:
    for text in (odd[odd.index('id="target-close"') :], page[page.index('id="target-sentiment"') :]):
        picture = re.search(r"<svg.*?</svg>", text, re.S)[0]  # type: ignore[index]
        assert "cap 10%" in picture
        assert float(re.search(r'class="limit" x1="([\d.]+)"', picture)[1]) == pytest.approx(84 + 47.2)  # type: ignore[index]


def test_what_was_live_before_has_its_column(odd: str, page: str) -> None:
    assert "Live before" in plain(odd)
    assert "Live before" not in plain(page)
    assert "within the limit, against the live model" in section(odd, "replaced")


def test_recovery_and_cost_stand_beside_the_name(page: str) -> None:
    assert "Recovery 100.0%, 3.12% more parameters." in section(page, "sentiment")


def test_what_is_out_of_the_vector_s_reach_is_stated_by_kind() -> None:
    assert _reach({}) == []
    assert _reach({"coverage": 1.0, "missed": {"norm": 0.0}}) == [("Difference in reach", "100.0%")]
    shown = dict(_reach({"coverage": 0.75, "missed": {"embedding": 3.0, "norm": 1.0}}))
    assert shown == {"Difference in reach": "75.0%", "Out of reach": "embedding 18.8%, norm 6.2%"}


def test_the_layer_chart_says_why_a_layer_was_kept_or_not() -> None:
    selection = SelectionView(scores={"0": 0.1, "1": 0.002, "2": 0.42, "3": 0.3}, kept=(0,))
    drawn = _layers(selection, {"depth": 0.5, "threshold": 0.05, "top_layers": None})
    assert drawn is not None
    kinds = re.findall(r'class="(bar[\w ]*)".*?<title>layer (\d): [\d.]+, (.*?)</title>', drawn.picture)
    deep = "not considered: beyond the first 50% of the layers"
    low = "not kept: too low, or without factors"
    assert kinds == [("bar kept", "0", "kept"), ("bar", "1", low), ("bar deep", "2", deep), ("bar deep", "3", deep)]
    assert f">{deep}</text>" in drawn.picture
    assert "threshold, 5% of the largest" in drawn.picture
    assert "1 of 4 layers kept, those with at least 5% of the largest score among the first 50%" in drawn.caption
    highest = _layers(selection, {"depth": 1.0, "threshold": 0.05, "top_layers": 1})
    assert highest is not None
    assert "the 1 highest." in highest.caption
    assert "threshold" not in highest.picture


def test_the_page_lists_its_parts_and_the_values_of_the_policy(page: str) -> None:
    contents = "".join(re.findall(r'<nav class="toc".*?</nav>', page, re.S))
    anchors = re.findall(r'href="#([\w-]+)"', contents)
    assert {"targets", "rates-sentiment", "history-group", "lineage-adversarial", "family", "policy"} <= set(anchors)
    policy = plain(page[page.index('<section aria-labelledby="policy">') :])
    for name, value in GateParams().model_dump().items():
        assert f"{name} {'none' if value is None else value if isinstance(value, str) else f'{value:g}'}" in policy


def test_the_lineage_is_drawn_with_an_arrow_for_each_input(page: str) -> None:
    figure = page[page.index('id="lineage-sentiment"') :]
    label = re.search(r'<svg role="group" aria-label="(.*?)"', figure)[1]  # type: ignore[index]
    drawn = figure[: figure.index("</svg>")]
    arrows = sum(len(node.split(" from ")[1].split(",")) for node in label.split("; ") if " from " in node)
    assert drawn.count('class="edge"') == drawn.count('class="edgehead"') == arrows > 8
    assert len(re.findall('class="node[ "]', drawn)) == 10


def test_a_fetched_vector_comes_from_its_publishers_bundle_and_not_the_other_way_round() -> None:
    def made(name: str, **inputs: str) -> RecordedArtefact:
        return RecordedArtefact(name, Path(name), Manifest(stage=name, params={}, inputs=inputs, files={}))

    aligned, vector = made("aligned"), made("vector", delta="sha256:" + "d" * 64)
    selection = made("selection", vector=vector.digest or "")
    held = {"aligned": aligned.digest or "", "vector": vector.digest or "", "selection": selection.digest or ""}
    family = {"aligned": aligned, "published": made("published", **held), "vector": vector, "selection": selection}
    sources = {step.key: {source.key for source in step.sources} for step in lineage(family, {})}
    assert sources["published"] == {"aligned"}
    assert "published" in sources["vector"]
    assert {"published", "vector"} <= sources["selection"]
    assert "publisher&#39;s bundle from aligned model; safety vector from publisher&#39;s bundle;" in lineage_graph(
        family
    )
