"""Source URIs: forms that are refused, and secrets that are never shown."""

import pytest

from safegene.checkpoints.sources.uri import parse
from safegene.errors import (
    SourceError,
)
from safegene.text import redact, redact_text


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:canary@host/x",
        "s3://user:canary@bucket/prefix",
        "s3://bucket/prefix?X-Amz-Signature=canary",
        "hf://user:hf_canarycanarycanarycanarycanarycanary@org/model",
        "file:///models?token=canary",
        "s3://bucket/AKIA0CANARYCANARY0",
    ],
)
def test_a_uri_with_a_secret_is_refused_and_the_secret_not_repeated(uri: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse(uri)
    assert "canary" not in (refused.value.message + refused.value.remedy).lower()
    assert "canary" not in redact(uri).lower()


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/x",
        "hf://a/b/c",
        "hf://../x",
        "tiny://aligned?seed=x",
        "tiny://a?other=1",
        "s3://x",
        "file://",
        "s3://my_models/v7",
        "s3://modelsABC/x",
    ],
)
def test_a_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="expected a source of the form"):
        parse(uri)


def test_text_of_other_libraries_is_shown_without_secrets() -> None:
    token = "hf_" + "canary" * 6
    text = f"GET http://u:pw@h/x?X-Amz-Credential=AK%2F1&a=b with Bearer abc.def and {token} failed"
    assert redact_text(text) == "GET http://***@h/x?X-Amz-Credential=***&a=b with *** and *** failed"
