"""Stage ``evaluate`` with a server in place of the weights on disk."""

from collections.abc import Iterator

import pytest

from safegene.errors import ParamsError, SourceError
from safegene.models.loading import load_model, load_tokenizer
from safegene.workspace.params import EvaluateParams
from safegene.workspace.server_params import ServerParams
from tests.factories.evaluation import PARAMS, World, evidence
from tests.factories.gate import ARMS
from tests.factories.model_server import Stand, serve


@pytest.fixture
def served(world: World) -> Iterator[tuple[Stand, EvaluateParams]]:
    """A stand-in server of the world's models, and the parameters that ask it."""
    stand = Stand()
    places = {"before": ("one", ()), "aligned": ("aligned", ()), "candidate": ("one", (world.root / "one-candidate",))}
    models = {
        name: (load_model(world.root / "models" / at, adapters=adapters), load_tokenizer(world.root / "models" / at))
        for name, (at, adapters) in places.items()
    }
    serve(stand, models)
    names = {arm: arm for arm in ARMS}
    server = ServerParams.model_validate({"url": stand.at().url, "names": names, "allow_hosts": ("127.0.0.1",)})
    yield stand, PARAMS.model_copy(update={"server": server})
    stand.server.shutdown()
    stand.server.server_close()


def test_a_server_of_the_same_weights_gives_the_same_judgements(
    world: World, served: tuple[Stand, EvaluateParams]
) -> None:
    stand, params = served
    local = evidence(world.evaluate(params=PARAMS.model_copy(update={"early_stop": False}), out="local"))
    remote = evidence(world.evaluate(params=params, out="remote"))
    assert remote[0] == local[0]
    assert remote[1].decoding != local[1].decoding
    assert remote[1].decoding["stop"] is None
    before = len(stand.asked)
    world.evaluate(params=params, out="again")
    assert len(stand.asked) == before, "replies are kept"


def test_a_reply_that_the_server_fails_to_give_is_lost_by_name_and_asked_for_again(
    world: World, served: tuple[Stand, EvaluateParams]
) -> None:
    stand, params = served
    answer = stand.answer
    stand.answer = lambda ask: (
        (401, b"") if "poison" in ask["messages"][0]["content"] and ask["max_tokens"] == 6 else answer(ask)
    )
    rows = [row for row in evidence(world.evaluate(params=params, out="lost"))[0] if row.failure]
    assert {row.prompt for row in rows} == {"harmful-5", "wrapped-5"}
    assert {(row.harmful, row.refusal, row.coherent, row.failure) for row in rows} == {
        ("unscored", "unscored", "unscored", "no reply: status 401")
    }
    stand.answer = answer
    assert not any(row.failure for row in evidence(world.evaluate(params=params, out="found"))[0])


def test_a_server_of_other_weights_is_refused(world: World, served: tuple[Stand, EvaluateParams]) -> None:
    _, params = served
    assert params.server is not None
    swapped = params.server.model_copy(
        update={"names": {"before": "before", "candidate": "aligned", "aligned": "aligned"}}
    )
    with pytest.raises(SourceError, match="'aligned' at .* of the weights on disk within 0.2 nats, got"):
        world.evaluate(params=params.model_copy(update={"server": swapped}))
    nameless = params.server.model_copy(update={"names": {"before": "before"}})
    with pytest.raises(ParamsError, match="name of the model candidate"):
        world.evaluate(params=params.model_copy(update={"server": nameless}))
