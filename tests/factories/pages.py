"""An HTML page as its tags, and as the text that people read."""

from html.parser import HTMLParser


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


def section(page: str, name: str) -> str:
    """The text of a target's section."""
    text = page[page.index(f'id="target-{name}"') :]
    return plain(text[: text.index("</section>")])
