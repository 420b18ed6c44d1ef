"""Checking rows with Great Expectations: rows and expectations in, failed expectations and an HTML page out.

Importing the library takes ten seconds, so it is imported when `check_rows` is called. The pages that it renders show
values unescaped and load scripts and styles from other sites. `check_rows` escapes the values, removes both, adds a
content security policy that forbids them, and removes clock times and random ids, so that the same rows give the same
bytes.
"""

import html
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import StringConstraints

from safegene.workspace.parsing import Strict

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #8884;padding:.4rem;text-align:left}"
    ".navbar,.modal,button,.breadcrumb,.alert-info,.navigation-pane,.cooltip,footer{display:none}"
    ".badge,.alert{padding:.1rem .5rem}.text-success{color:#176f2c}.text-danger{color:#b3261e}"
)
HEAD = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
INDEX = "index.html"  # beside the pages, linked from each
MAX_TEXT = 1000  # characters
CardText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, strip_whitespace=True)]


class Expectation(Strict):
    """One expectation of a Great Expectations suite.

    Attributes:
        kind: name of the library's expectation class, such as ``ExpectColumnValuesToBeUnique``.
        arguments: of that class.
    """

    kind: CardText
    arguments: dict[str, str | int | tuple[str, ...]]

    @property
    def name(self) -> str:
        """The expectation in messages: class, column and limits."""
        column = self.arguments.get("column", "rows")
        limits = ", ".join(f"{key} {value}" for key, value in self.arguments.items() if key != "column")
        return f"{self.kind}({column}{': ' if limits else ''}{limits})"


@dataclass(frozen=True)
class FailedExpectation:
    """An expectation that the rows do not meet.

    Attributes:
        expectation: the expectation.
        rows: positions of the unexpected rows; empty for an expectation about the whole table.
        observed: the observed value, the number of unexpected rows, or the library's error.
    """

    expectation: Expectation
    rows: tuple[int, ...]
    observed: str


def check_rows(
    name: str, rows: Sequence[Mapping[str, Any]], expectations: Sequence[Expectation]
) -> tuple[list[FailedExpectation], str]:
    """Validate rows against a suite of expectations.

    Args:
        name: of the suite, shown on the page.
        rows: plain JSON objects; a missing key counts as null.
        expectations: the suite.

    Returns:
        The expectations that failed, in the suite's order, and the HTML page with every result.
    """
    with _quiet():
        import great_expectations as gx
        import pandas as pd

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": pd.DataFrame(list(rows))})
        configured = [
            getattr(gx.expectations, expectation.kind)(**expectation.model_dump(mode="json")["arguments"])
            for expectation in expectations
        ]
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=configured))
        validation = batch.validate(suite, result_format="COMPLETE")
        results = {result.expectation_config.id: result for result in validation.results}  # in another order
        failed = [
            _failed(expectation, results[added.id])
            for expectation, added in zip(expectations, configured, strict=True)
            if not results[added.id].success
        ]
        return failed, _page(validation)


def library_version() -> str:
    """Version of the installed Great Expectations."""
    from importlib.metadata import version

    return version("great_expectations")


def _failed(expectation: Expectation, result: Any) -> FailedExpectation:
    raised = (result.exception_info or {}).get("exception_message")
    rows = tuple(result.result.get("unexpected_index_list") or ())
    count = f"{result.result.get('unexpected_count', 'no')} unexpected"
    return FailedExpectation(expectation, rows, str(raised or result.result.get("observed_value", count)))


def _page(validation: Any) -> str:
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    validation.meta["batch_markers"] = {}
    for result in validation.results:
        result.result = _escaped(result.result)
    page = str(DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(validation)))
    page = re.sub(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"\d{8}T\d{6}\.\d+Z", "", page)
    names: dict[str, str] = {}
    page = re.sub(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        lambda match: names.setdefault(match[0], f"part{len(names)}"),
        page,
    )
    return _with_own_links(page).replace("<head>", f"<head>{HEAD}", 1)


def _with_own_links(page: str) -> str:
    """The page with links that resolve: to its own parts, and to `index_page` beside it.

    The library writes a page for the site that it builds itself, four folders up; other links lead to its own site, and
    to parts that only a script opens.
    """
    names = set(re.findall(r"""\bid=["']([^"']+)["']""", page))

    def kept(link: re.Match[str]) -> str:
        place = link[1]
        if place.endswith("/index.html"):
            return f'href="{INDEX}"'
        return link[0] if place.startswith("#") and place[1:] in names else ""

    return re.sub(r"""href=["']([^"']*)["']""", kept, page)


def index_page(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """The page `INDEX` of a folder of result pages.

    Args:
        title: of the page.
        rows: (name of a page without ``.html``, or "" for none; what it is about; its result).
    """
    cells = [f"<tr><td>{_link(name, about)}</td><td>{html.escape(result)}</td></tr>\n" for name, about, result in rows]
    return (
        f'<!doctype html><html lang="en"><head>{HEAD}<meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        f"<body><h1>{html.escape(title)}</h1>\n<table><tr><th>set</th><th>result</th></tr>\n{''.join(cells)}"
        "</table></body></html>\n"
    )


def _link(name: str, about: str) -> str:
    return f'<a href="{html.escape(name)}.html">{html.escape(about)}</a>' if name else html.escape(about)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the library's telemetry and the warnings about its own dependencies."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
