"""Evaluation suites: folders of prompts with a card that states source, licence and digests.

``tables`` reads untrusted files strictly, ``loading`` turns their rows into prompts and counts what it leaves out,
``harmful`` and ``tasks`` hold one loader per public set, ``formats`` lists them, ``wrappers`` derives rows inside
jailbreak templates and in other languages, and ``card`` reads and writes a suite.
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
