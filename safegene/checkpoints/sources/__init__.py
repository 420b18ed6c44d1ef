"""Sources of checkpoints: a URI is fetched into a verified copy in the content-addressed cache.

``file://FOLDER``, ``hf://ORG/MODEL[@REVISION]``, ``s3://BUCKET/PREFIX``, ``tiny://NAME[?seed=N]``, and the schemes of
plug-ins. Only files of a checkpoint are copied (see `safegene.checkpoints.wanted`). They are verified (see
`safegene.checkpoints`) before the copy is renamed to the digest of its content, so a copy with that name is complete.
A URI that holds a secret is refused.
"""

from safegene.checkpoints.sources.cache import CachedCheckpoint
from safegene.checkpoints.sources.discovery import DiscoveredCheckpoint, discover
from safegene.checkpoints.sources.fetching import ModelFiles, fetch, fingerprint, local_checkpoint

__all__ = [
    "DiscoveredCheckpoint",
    "CachedCheckpoint",
    "ModelFiles",
    "fetch",
    "fingerprint",
    "local_checkpoint",
    "discover",
]
