"""Evaluation: a model answers the gate's prompts, and a judge labels every reply."""
