"""The keys of a ledger in its store, and the two unsigned kinds of object: the tip and the channel pointers."""

import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import NonNegativeInt

from safegene.errors import FormatError, LedgerError
from safegene.workspace.digest import PREFIX
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import Strict, parse_json

TIP = "tip"
SEEN = "ledger.seen"
_HEX, _NAME = "[0-9a-f]{64}", "[a-z0-9][a-z0-9_-]{0,62}"
_KNOWN = re.compile(
    rf"{TIP}|(?:records|revocations|snapshots|objects)/{_HEX}\.json|channels/{_NAME}/{_NAME}|releases/{_HEX}/.+"
    rf"|approvals/{_HEX}/[A-Za-z0-9]+\.json|(?:selftest|leases|watched)/.+"
)


class Tip(Strict):
    """The content of ``tip`` and of ``ledger.seen``: a record and its number in the chain."""

    record: Digest
    sequence: NonNegativeInt


class Pointer(Tip):
    """The content of a channel pointer: the record that is live, and its release."""

    release: Digest


TipT = TypeVar("TipT", bound=Tip)


@dataclass(frozen=True)
class Stored(Generic[TipT]):
    """A tip or pointer as it was read: its content, and the etag that replaces exactly this version."""

    content: TipT
    etag: str


def parse_tip(model: type[TipT], data: bytes, *, where: str) -> TipT:
    """The content of a tip or pointer.

    Raises:
        LedgerError: it is malformed.
    """
    try:
        return parse_json(model, data, where=where)
    except FormatError as error:
        raise LedgerError(error.message) from None


def record_key(digest: str, kind: str = "records") -> str:
    """The key of a record in the store, or of its copy or snapshot."""
    return f"{kind}/{digest.removeprefix(PREFIX)}.json"


def object_key(digest: str) -> str:
    """The key of an object that a record names by its digest."""
    return f"objects/{digest.removeprefix(PREFIX)}.json"


def is_ledger_key(key: str) -> bool:
    """Whether a key is that of something of a ledger."""
    return _KNOWN.fullmatch(key) is not None


def channel_key(channel: str, target: str) -> str:
    """The key of a channel pointer in the store."""
    return f"channels/{channel_name(channel, target)}"


def channel_name(channel: str, target: str) -> str:
    """A channel and a target as one name."""
    return f"{channel}/{target}"
