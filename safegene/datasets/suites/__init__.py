"""Evaluation suites: folders of prompts with a card that says where they come from and proves what they are.

``tables`` reads files of strangers strictly, ``loading`` turns a public set into rows and counts what it leaves out,
``harmful`` and ``tasks`` know the public sets, ``formats`` lists them, ``wrappers`` asks a behaviour in other ways,
and ``card`` is the suite on disk.
"""

from safegene.datasets.suites.card import Card, Suite, read_suite, write_suite
from safegene.datasets.suites.formats import SUITE_FORMATS, SuiteFormat, format_named
from safegene.datasets.suites.loading import LoadedRows, LoadOptions, collect_rows

__all__ = [
    "SUITE_FORMATS",
    "Card",
    "SuiteFormat",
    "LoadedRows",
    "LoadOptions",
    "Suite",
    "format_named",
    "collect_rows",
    "read_suite",
    "write_suite",
]
