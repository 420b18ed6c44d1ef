"""``ledger.pub``: the pinned public keys, whose they are, and how many signatures a promotion needs.

The file is JSON: ``{"keys": [{"keyid", "keytype", "scheme", "keyval": {"public"}, "owner"?, "roles"?, "until"?}],
"signatures"?: [{"from", "count"}]}``. Rules:

- A key is ed25519, or ECDSA on P-256 or P-384; no two entries have the same key or key id.
- ``owner`` names the person whose key it is. Keys of one person count as one signature.
- ``roles``: ``["approve"]`` for a key that may approve what others promote; it needs an owner.
- ``until`` is the number of the first record that the key no longer signs for: it was retired or revoked.
- From record ``from`` on, a promotion needs ``count`` signatures of different persons; before the first entry, one.

`safegene.ledger.trust` says what of this a record needs, `safegene.ledger.key_changes` changes it by records.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import SSlibKey

from safegene.errors import FormatError, LedgerError
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, strict_json

SCHEMES = {"ed25519": "ed25519", "ecdsa-sha2-nistp256": "ecdsa", "ecdsa-sha2-nistp384": "ecdsa"}
"""Scheme -> type of key."""
APPROVE = "approve"
MAX_SIGNATURES = 9
MAX_OWNER = 200
EXTRAS = {"owner", "roles", "until"}


@dataclass(frozen=True)
class PinnedKeys:
    """The content of ``ledger.pub``.

    Attributes:
        keys: the public keys, with ``owner``, ``roles`` and ``until`` among their unrecognised fields.
        signatures: (number of a record, how many signatures promotions need from there on), in ascending order.
    """

    keys: tuple[SSlibKey, ...]
    signatures: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content as plain JSON values."""
        content: dict[str, Any] = {"keys": [key_to_json(key) for key in self.keys]}
        if self.signatures:
            content["signatures"] = [{"from": start, "count": count} for start, count in self.signatures]
        return content


def owner_of(key: SSlibKey) -> str:
    """The person whose key it is; empty where nobody is named."""
    return str(key.unrecognized_fields.get("owner", ""))


def person(key: SSlibKey) -> str:
    """The owner in the form in which owners are compared: capitals, spaces and Unicode forms make no other person."""
    return " ".join(unicodedata.normalize("NFKC", owner_of(key)).casefold().split())


def may_approve(key: SSlibKey) -> bool:
    """Whether the key may approve what others promote."""
    return APPROVE in key.unrecognized_fields.get("roles", ())


def retired_from(key: SSlibKey) -> int | None:
    """Number of the first record that the key no longer signs for; None for an active key."""
    until = key.unrecognized_fields.get("until")
    return None if until is None else int(until)


def signatures_needed(signatures: Sequence[tuple[int, int]], sequence: int) -> int:
    """How many signatures the promotion with that number needs."""
    return next((count for start, count in reversed(signatures) if start <= sequence), 1)


def key_to_json(key: SSlibKey) -> dict[str, Any]:
    """An entry of ``ledger.pub``."""
    return {"keyid": key.keyid, **key.to_dict()}


def with_extras(key: SSlibKey, **extras: Any) -> SSlibKey:
    """The key with other values of ``owner``, ``roles`` or ``until``; None removes one."""
    values = {**key_to_json(key), **extras}
    return parse_key({name: value for name, value in values.items() if value is not None}, where="a new entry")


def read_pinned_keys(path: Path) -> PinnedKeys:
    """Read ``ledger.pub``.

    Raises:
        LedgerError: there is no such file, or it is malformed.
    """
    if not path.is_file():
        raise LedgerError(
            f"expected the pinned public key in {path}, got no such file",
            remedy=f"restore it: `git restore --source HEAD --staged --worktree {path.name}`, or copy the ledger's "
            "public keys to this place; a new key would not be one of the ledger's",
        )
    try:
        raw = strict_json(path.read_bytes(), where=str(path))
    except FormatError as error:
        raise LedgerError(f"expected public keys in {path}, got {error}") from None
    return parse_pinned_keys(raw, where=str(path))


def parse_pinned_keys(raw: Any, *, where: str) -> PinnedKeys:
    """The content of ``ledger.pub`` from plain JSON values.

    Raises:
        LedgerError: it is malformed; ``where`` names the file.
    """
    if not isinstance(raw, dict) or set(raw) - {"keys", "signatures"} or not isinstance(raw.get("keys"), list):
        raise LedgerError(f"expected public keys in {where}, got other content")
    keys = tuple(parse_key(item, where=where) for item in raw["keys"])
    if not keys:
        raise LedgerError(f"expected at least one public key, got none, in {where}")
    for what, values in (("key id", [k.keyid for k in keys]), ("public key", [k.keyval["public"] for k in keys])):
        if len(set(values)) < len(values):
            raise LedgerError(f"expected each {what} once, got one twice, in {where}")
    return PinnedKeys(keys, _parse_signatures(raw.get("signatures", []), where=where))


def write_pinned_keys(path: Path, pinned: PinnedKeys) -> None:
    """Write ``ledger.pub``."""
    write_file(path, canonical_json(pinned.to_json()) + b"\n")


def parse_key(item: Any, *, where: str) -> SSlibKey:
    """One entry of ``ledger.pub``.

    Raises:
        LedgerError: it is malformed; ``where`` names the file.
    """
    try:
        entry = dict(item)
        key = SSlibKey.from_dict(entry.pop("keyid"), entry)
        if SCHEMES.get(key.scheme) != key.keytype:
            raise ValueError(f"a key of type {key.keytype!r} and scheme {key.scheme!r}")
        if set(key.keyval) != {"public"} or not isinstance(key.keyid, str) or not key.keyid.isalnum():
            raise ValueError("no public key with its id")
        if key.scheme == "ed25519":
            if len(bytes.fromhex(key.keyval["public"])) != 32:
                raise ValueError(f"a key of type {key.keytype!r}")
        else:
            _require_curve(key)
        _require_extras(key.unrecognized_fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"expected ed25519 or ECDSA public keys in {where}, got {error}") from None
    return key


def _require_curve(key: SSlibKey) -> None:
    curve = getattr(load_pem_public_key(key.keyval["public"].encode()), "curve", None)
    if key.scheme != f"ecdsa-sha2-nistp{getattr(curve, 'key_size', 0)}":
        raise ValueError(f"a key of another curve than {key.scheme}")


def _require_extras(extras: Mapping[str, Any]) -> None:
    if unknown := set(extras) - EXTRAS:
        raise ValueError(f"the unknown keys {sorted(unknown)}")
    owner, roles, until = extras.get("owner"), extras.get("roles"), extras.get("until")
    if owner is not None and not (
        isinstance(owner, str) and owner.strip() and owner.isprintable() and len(owner) <= MAX_OWNER
    ):
        raise ValueError(f"the owner {owner!r}")
    if roles is not None and roles != [APPROVE]:
        raise ValueError(f"the roles {roles!r}")
    if roles and not owner:
        raise ValueError("an approver without an owner")
    if until is not None and (isinstance(until, bool) or not isinstance(until, int) or until < 0):
        raise ValueError(f"the record number {until!r}")


def _parse_signatures(raw: Any, *, where: str) -> tuple[tuple[int, int], ...]:
    try:
        entries = tuple((item["from"], item["count"]) for item in raw)
        whole = all(type(value) is int for entry in entries for value in entry)
        starts = [start for start, _ in entries]
        known = all(set(item) == {"from", "count"} for item in raw)
    except (TypeError, KeyError):
        raise LedgerError(f"expected signatures as a list of from and count, got {raw!r}, in {where}") from None
    if not (whole and known and starts == sorted(set(starts)) and all(start >= 0 for start in starts)):
        raise LedgerError(f"expected ascending record numbers in signatures, got {raw!r}, in {where}")
    if wrong := [count for _, count in entries if not 1 <= count <= MAX_SIGNATURES]:
        raise LedgerError(f"expected 1 to {MAX_SIGNATURES} signatures, got {wrong[0]}, in {where}")
    return entries
