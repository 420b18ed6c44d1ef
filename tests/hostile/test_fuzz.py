"""Every parser of input from outside returns or raises its own errors, whatever it is given; `make fuzz` runs longer.

The corpus holds inputs that once broke a parser. Hypothesis shrinks what it finds.
"""

import logging
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.fuzz import CORPUS, Crash, State, corpus, main, mutate, time_limit, try_one
from scripts.fuzz_parsers import Parser, parsers

with pytest.MonkeyPatch.context() as _patch:  # at collection the fixtures have set no folder of keys yet
    _patch.setenv("SAFEGENE_KEYS", tempfile.mkdtemp())
    NAMES = tuple(parsers(Path(tempfile.mkdtemp())))
INPUTS = 60  # per parser


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return parsers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_the_good_input_of_a_parser_is_accepted(known: dict[str, Parser], name: str) -> None:
    assert any(try_one(known[name], seed) for seed in known[name].seeds)


@pytest.mark.parametrize("name", NAMES)
def test_what_once_broke_a_parser_does_not_any_more(known: dict[str, Parser], name: str) -> None:
    for data in corpus(name):
        with time_limit(10):
            try_one(known[name], data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), wild=st.binary(max_size=200))
def test_no_input_breaks_a_parser(known: dict[str, Parser], name: str, seed: int, wild: bytes) -> None:
    parser, chance = known[name], random.Random(seed)
    with time_limit(10):
        try_one(parser, mutate(chance.choice(parser.seeds), parser.seeds, chance))
        try_one(parser, wild)


def test_the_corpus_is_of_parsers_that_there_are() -> None:
    assert {path.name for path in CORPUS.glob("*")} <= set(NAMES)


def test_a_parser_that_breaks_is_found_and_its_input_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.fuzz.CORPUS", tmp_path / "corpus")
    broken = Parser("broken", lambda data: data.decode(), (b"plain text",))
    monkeypatch.setattr("scripts.fuzz.parsers", lambda folder: {"broken": broken})
    state = tmp_path / "state.json"
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "keys"))
    assert main(["--seconds", "0.3", "--seed", "1", "--state", str(state)]) == 1
    (kept, *_) = (tmp_path / "corpus" / "broken").iterdir()
    with pytest.raises(Crash, match="UnicodeDecodeError"):
        try_one(broken, kept.read_bytes())
    first = State(state)
    assert first.inputs["broken"] > 0
    main(["--seconds", "0.2", "--seed", "2", "--state", str(state)])
    logging.disable(logging.NOTSET)
    assert State(state).inputs["broken"] > first.inputs["broken"], "a run goes on counting where the last one stopped"


def test_a_parser_that_hangs_is_found() -> None:
    def hang(_: bytes) -> None:
        while True:
            pass

    with pytest.raises(Crash, match="no result within"), time_limit(0.05):
        try_one(Parser("hangs", hang, (b"",)), b"")
