"""What a workspace remembers of its ledger, in its files and at Git's HEAD: the newest record, and the pinned keys.

An edit that is not committed can exchange ``ledger.pub``, ``ledger.seen`` and the ledger together; HEAD tells.
"""

from pathlib import Path

from safegene.ledger.memory import Anchor
from safegene.ledger.pointers import SEEN, Tip, parse_tip
from safegene.workspace.git import committed


def workspace_anchors(root: Path, public_key: Path) -> tuple[tuple[Anchor, ...], bytes | None]:
    """The newest record in ``ledger.seen``, and in that of Git's HEAD where it is another.

    Returns:
        The records; and the public keys of HEAD, where they are others than those in the file.

    Raises:
        LedgerError: one of the records is malformed.
    """
    head = committed(root, SEEN, *(() if public_key.is_absolute() else (public_key.as_posix(),)))
    file = root / SEEN
    found = {f"{SEEN} at Git's HEAD": head.get(SEEN), str(file): file.read_bytes() if file.is_file() else None}
    tips = {where: parse_tip(Tip, data, where=where) for where, data in found.items() if data is not None}
    anchors = {tip.record: Anchor(tip.record, tip.sequence, where) for where, tip in tips.items()}
    keys = head.get(public_key.as_posix())
    return tuple(anchors.values()), None if keys == (root / public_key).read_bytes() else keys
