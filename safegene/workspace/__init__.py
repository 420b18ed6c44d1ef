"""The files of a workspace: their places, parameters, manifests and digests."""
