"""Exports of a repair: a PEFT adapter, a merged checkpoint, a model card."""
