"""Evaluation suites: folders of prompts with a card that says where they come from and proves what they are.

``tables`` reads files of strangers strictly, ``loading`` turns a public set into rows and counts what it leaves out,
``harmful`` and ``tasks`` know the public sets, ``formats`` lists them, ``wrappers`` asks a behaviour in other ways,
and ``card`` is the suite on disk.
"""

from safegene.datasets.suites.card import Card, Suite, read_suite, write_suite
from safegene.datasets.suites.formats import FORMATS, Format, format_named
from safegene.datasets.suites.loading import Loaded, Options, gather

__all__ = [
    "FORMATS",
    "Card",
    "Format",
    "Loaded",
    "Options",
    "Suite",
    "format_named",
    "gather",
    "read_suite",
    "write_suite",
]
