"""An HTML page as its tags, and as the text that people read."""

from html.parser import HTMLParser
from pathlib import Path


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
    """The tags of a page."""
    tags = Tags()
    tags.feed(page)
    return tags


def plain(page: str) -> str:
    """The text of a page, on one line."""
    return " ".join("".join(parsed(page).text).split())


def whole(index: Path) -> str:
    """The overview of a report and the pages of its targets, in the overview's order of names."""
    return "".join(path.read_text(encoding="utf-8") for path in (index, *sorted((index.parent / "targets").glob("*"))))


def target_page(index: Path, name: str) -> str:
    """A target's page."""
    return (index.parent / "targets" / f"{name}.html").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    """The text of a target's page among `whole`, from its name on."""
    text = page[page.index(f'id="name-{name}"') :]
    return plain(f"<p {text[: text.index('</main>')]}")
