"""Field types of models (a name, a digest, a share in 0..1), and the base class of parameter sections."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from safegene.text import redact_text
from safegene.workspace.schedule import check_cron
from safegene.workspace.source_text import source_uri

SECRET = "secret"  # the type of the error of a value that must not be repeated


def _without_secret(value: str) -> str:
    if redact_text(value) != value:
        raise PydanticCustomError(SECRET, "expected no secret in it: give it by the environment, and revoke this one")
    return value


def _normalised(value: Any, info: ValidationInfo) -> Any:
    """Text as a URI; relative to the folder in the validation's context, which is that of ``params.yaml``."""
    return source_uri(value, (info.context or {}).get("base")) if isinstance(value, str) else value


def _without_query(value: str) -> str:
    if "?" in value or "#" in value:
        raise PydanticCustomError(SECRET, "expected a URL without query and fragment: give a key by the environment")
    return _without_secret(value)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Uri = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://\S+$"), AfterValidator(_without_secret)]
Source = Annotated[Uri, BeforeValidator(_normalised)]
"""A source as people write it: a path and ``ORG/MODEL`` become URIs, see `safegene.workspace.source_text`."""
Cron = Annotated[str, AfterValidator(check_cron)]
Url = Annotated[str, AfterValidator(_without_query)]
"""The address of a server: without credentials, query and fragment, which would be in messages and records."""
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
FilePath = Annotated[Path, Field(strict=False)]  # text or a path; every other type is strict, see `Frozen`


class Frozen(BaseModel):
    """A parameter section: immutable, no unknown keys, finite numbers only, no conversion between types.

    So ``"0.05"`` is no number, ``true`` is no integer, and 1 is no boolean. An integer may stand for a float, and a
    list may stand for a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _list_as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value
