"""Worked examples: a real family prepared for the pipeline, and a notebook."""
