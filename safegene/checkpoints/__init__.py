"""Checkpoints as they lie on disk: read header first, one tensor at a time, never a line of code from the folder."""
