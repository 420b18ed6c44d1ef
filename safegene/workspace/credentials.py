"""Environment variables that hold credentials: which they are, and doing without them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from safegene.text import redact_text

_SECRET = re.compile(
    r"^AWS_|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|AUTH(?!OR)|_KEY|APIKEY|_PIN$|SIGNING_URI", re.IGNORECASE
)
_SETTING = re.compile(r"_(PATH|FILE|KEYS|DISABLE_IMPLICIT_TOKEN)$")  # says where something is, or whether
REMOVED = "SAFEGENE_WITHOUT_CREDENTIALS"  # environment: set in a process that was started without them
KEPT = "SAFEGENE_STAGE_VARIABLES"  # environment: names, separated by commas, of variables that every stage gets


def secret_names(environment: Mapping[str, str]) -> frozenset[str]:
    """The variables that could hold a secret, by their names or by the form of their values."""
    return frozenset(
        name
        for name, value in environment.items()
        if (_SECRET.search(name) and not _SETTING.search(name)) or redact_text(value) != value
    )


def without_secrets(environment: Mapping[str, str], kept: Collection[str] = ()) -> dict[str, str]:
    """The environment without variables that could hold a secret, except those that are ``kept``."""
    dropped = secret_names(environment).difference(kept, environment.get(KEPT, "").replace(" ", "").split(","))
    return {name: value for name, value in environment.items() if name not in dropped}


@contextmanager
def without_credentials() -> Iterator[None]:
    """Remove environment variables that could hold a secret inside the block, out of reach of a checkpoint's code."""
    hidden = {name: os.environ[name] for name in secret_names(os.environ)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
