"""A workspace's files: where they lie, their parameters, manifests and digests."""
