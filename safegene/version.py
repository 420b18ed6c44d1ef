"""The version of the package, which manifests and records name."""

__version__ = "0.1.0"
