"""Recovery: every repair method on every target of three seeds of the tiny family, by one protocol."""
