"""Great Expectations, kept at arm's length: rows and rules in, findings and an HTML page out.

Its import takes ten seconds, so only stage ``validate`` imports this module. Two things its own pages do are
undone here: they print values unescaped and they load scripts and styles from elsewhere. A page of ours carries a
policy that forbids both, no clock and no random name, so the same data give the same bytes.
"""

import html
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #8884;padding:.4rem;text-align:left}"
    ".navbar,.modal,button,.breadcrumb,.alert-info,.navigation-pane,.cooltip,footer{display:none}"
    ".badge,.alert{padding:.1rem .5rem}.text-success{color:#176f2c}.text-danger{color:#b3261e}"
)


@dataclass(frozen=True)
class Rule:
    """One expectation: its Great Expectations class, its arguments, and its name in messages."""

    kind: str
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What a message says of the rule."""
        column = self.arguments.get("column", "rows")
        limits = ", ".join(f"{key} {value}" for key, value in self.arguments.items() if key != "column")
        return f"{self.kind}({column}{': ' if limits else ''}{limits})"


@dataclass(frozen=True)
class Finding:
    """A rule that the rows break: which rows (by position; none for a rule about the whole), and what was observed."""

    rule: Rule
    rows: tuple[int, ...]
    observed: str


def check_table(name: str, rows: Sequence[Mapping[str, Any]], rules: Sequence[Rule]) -> tuple[list[Finding], str]:
    """Hold rows against rules; what they break, and the page that shows everything.

    Args:
        name: of the suite, for the page.
        rows: plain JSON objects; a missing key is a null.
        rules: the suite.
    """
    with _quiet():
        import great_expectations as gx
        import pandas as pd

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": pd.DataFrame(list(rows))})
        made = [getattr(gx.expectations, rule.kind)(**rule.arguments) for rule in rules]
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=made))
        result = batch.validate(suite, result_format="COMPLETE")
        found = [_finding(rule, _result_of(expected, result)) for rule, expected in zip(rules, made, strict=True)]
        return [finding for finding in found if finding], _page(result)


def version() -> str:
    """Great Expectations' version."""
    from importlib.metadata import version as installed

    return installed("great_expectations")


def _result_of(expected: Any, result: Any) -> Any:
    """The result of one expectation: the suite gave it an id, and results may come in another order."""
    return next(one for one in result.results if one.expectation_config.id == expected.id)


def _finding(rule: Rule, one: Any) -> Finding | None:
    if one.success:
        return None
    raised = (one.exception_info or {}).get("exception_message")
    rows = tuple(one.result.get("unexpected_index_list") or ())
    observed = raised or one.result.get("observed_value", f"{one.result.get('unexpected_count', 'no')} unexpected")
    return Finding(rule, rows, str(observed))


def _page(result: Any) -> str:
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta["batch_markers"] = {}
    for one in result.results:
        one.result = _escaped(one.result)
    page = str(DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result)))
    page = re.sub(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"\d{8}T\d{6}\.\d+Z", "", page)
    names: dict[str, str] = {}
    page = re.sub(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        lambda found: names.setdefault(found[0], f"part{len(names)}"),
        page,
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
    return page.replace("<head>", f"<head>{head}", 1)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry, and none of the library's warnings about its own dependencies."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
