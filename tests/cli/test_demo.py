"""The demo says, in words, how its results differ from those that it is made to show."""

from safegene.cli.demo import unexpected


def test_two_benign_fine_tunes_live_and_the_adversarial_one_not_is_what_the_demo_shows() -> None:
    live = {"sentiment": "sha256:a", "topic": "sha256:b", "group": None, "adversarial": None}
    assert unexpected({"sentiment": "pass", "topic": "pass", "group": "fail", "adversarial": "fail"}, live) == []


def test_too_few_promotions_and_a_promoted_adversary_are_problems() -> None:
    live = {"sentiment": "sha256:a", "topic": None, "group": None, "adversarial": "sha256:c"}
    few, adversary = unexpected({"sentiment": "pass", "topic": "inconclusive"}, live)
    assert few == ("expected at least two benign fine-tunes live, got sentiment (sentiment pass, topic inconclusive)")
    assert adversary == "expected adversarial not live, got sha256:c"
    assert "got none ()" in unexpected({}, {})[0]
