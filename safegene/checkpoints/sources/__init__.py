"""Where checkpoints come from: a URI to a verified copy in the content-addressed cache, and what is new in a place.

``file://FOLDER``, ``hf://ORG/MODEL[@REVISION]``, ``s3://BUCKET/PREFIX``, ``tiny://NAME[?seed=N]``. The law: only files
of a checkpoint are copied (see `wanted`); they are verified (see `safegene.checkpoints`) before the copy gets its name,
which is the digest of its content; a copy that has its name is complete. No URI carries a secret: one that does is
refused.
"""

from safegene.checkpoints.sources.cache import CachedCheckpoint
from safegene.checkpoints.sources.discovery import DiscoveredCheckpoint, discover
from safegene.checkpoints.sources.fetching import ModelFiles, fetch, fingerprint, local_checkpoint
from safegene.checkpoints.sources.uri import redact, redact_text

__all__ = [
    "DiscoveredCheckpoint",
    "CachedCheckpoint",
    "ModelFiles",
    "fetch",
    "fingerprint",
    "local_checkpoint",
    "redact",
    "redact_text",
    "discover",
]
