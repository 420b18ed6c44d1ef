"""Parameters of the servers that evaluated models are asked on, section ``evaluate.server`` of ``params.yaml``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from safegene.workspace.fields import Frozen, Positive, PositiveFloat, Url


class ServerParams(Frozen):
    """OpenAI-compatible servers of the evaluated models; ``safegene serve-plan`` writes this section.

    ``names``: evaluated model -> its name on the server at ``url``, or at its own address in ``urls``. Before its first
    reply and after every batch, each model's log-probabilities of a few tokens must be those of the weights on disk, on
    average within ``max_logprob_difference`` nats. Of a server that gives none, at most ``max_disagreement`` of the
    replies may begin otherwise. The API key is read from ``SAFEGENE_SERVER_KEY``.
    """

    url: Url
    names: dict[Literal["before", "candidate", "aligned", "incumbent"], str] = Field(min_length=1)
    urls: dict[Literal["before", "candidate", "aligned", "incumbent"], Url] = {}
    allow_hosts: tuple[str, ...] = ()
    timeout_seconds: PositiveFloat = 120.0
    at_once: Positive = 8
    max_disagreement: Annotated[float, Field(ge=0.0, le=0.5)] = 0.25
    max_logprob_difference: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2

    def identity(self) -> dict[str, Any]:
        """What replies depend on: the addresses and the names, as JSON values."""
        return self.model_dump(mode="json", include={"url", "names"} | ({"urls"} if self.urls else set()))
