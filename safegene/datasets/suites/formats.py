"""The formats of public sets that ``safegene suite add --format`` accepts.

A package adds a format by an entry point in the group ``safegene.suite_formats`` whose object is a `SuiteFormat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from safegene.datasets.suites import harmful, tasks
from safegene.datasets.suites.loading import Loader
from safegene.errors import ParamsError
from safegene.workspace.plugins import Registry


@dataclass(frozen=True)
class SuiteFormat:
    """How to read one public set.

    Attributes:
        load: reads the rows from the file's bytes.
        files: names of the published file, looked for when the source is a folder.
        licence: the licence that the authors state, shown as a hint; the card holds what the user gives.
        languages: columns that the user may choose from; empty for a set without a column per language.
    """

    load: Loader
    files: tuple[str, ...]
    licence: str
    languages: tuple[str, ...] = ()


_PUBLIC: Mapping[str, SuiteFormat] = {
    "advbench": SuiteFormat(harmful.advbench, ("harmful_behaviors.csv",), "MIT"),
    "harmbench": SuiteFormat(harmful.harmbench, ("harmbench_behaviors_text_all.csv",), "MIT"),
    "jailbreakbench": SuiteFormat(
        harmful.jailbreakbench("harmful", "jailbreakbench"), ("behaviors.csv", "harmful-behaviors.csv"), "MIT"
    ),
    "jailbreakbench-benign": SuiteFormat(
        harmful.jailbreakbench("lookalike", "jailbreakbench-benign"), ("benign-behaviors.csv",), "MIT"
    ),
    "xstest": SuiteFormat(harmful.xstest, ("xstest_prompts.csv",), "CC-BY-4.0"),
    "strongreject": SuiteFormat(harmful.strongreject, ("strongreject_dataset.csv",), "MIT"),
    "catqa": SuiteFormat(harmful.question_tree("catqa"), ("catqa_english.json",), "Apache-2.0"),
    "harmfulqa": SuiteFormat(harmful.question_tree("harmfulqa"), ("harmfulqa.json",), "Apache-2.0"),
    "dangerousqa": SuiteFormat(harmful.question_list("dangerousqa"), ("dangerousqa.json",), "Apache-2.0"),
    "adversarialqa": SuiteFormat(harmful.question_list("adversarialqa"), ("adversarialqa.json",), "Apache-2.0"),
    "multijail": SuiteFormat(harmful.multijail, ("MultiJail.csv",), "MIT", harmful.LANGUAGES),
    "simplesafetytests": SuiteFormat(harmful.simplesafetytests, ("sst_test_cases.csv",), "CC-BY-2.0"),
    "beavertails": SuiteFormat(
        harmful.beavertails, ("test.jsonl", "test.jsonl.gz", "test.jsonl.xz"), "CC-BY-NC-4.0 (not for commercial use)"
    ),
    "gsm8k": SuiteFormat(tasks.gsm8k, ("test.jsonl",), "MIT"),
    "banking77": SuiteFormat(tasks.banking77, ("test.csv",), "CC-BY-4.0"),
    "agnews": SuiteFormat(
        tasks.agnews, ("test.jsonl", "test.csv"), "none stated; for non-commercial use, its authors say"
    ),
    "sst2": SuiteFormat(tasks.sst2, ("validation.jsonl", "dev.tsv"), "none stated by its authors"),
    "boolq": SuiteFormat(tasks.boolq, ("validation.jsonl", "dev.jsonl"), "CC-BY-SA-3.0"),
}

SUITE_FORMATS: Registry[SuiteFormat] = Registry("safegene.suite_formats", _PUBLIC)


def format_named(name: str) -> SuiteFormat:
    """The format of that name.

    Raises:
        ParamsError: there is no such format; lists the known ones.
    """
    if name not in SUITE_FORMATS:
        raise ParamsError(f"expected a format of {', '.join(SUITE_FORMATS)}, got {name!r}")
    return SUITE_FORMATS[name]
