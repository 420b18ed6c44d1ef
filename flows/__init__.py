"""Prefect flows: when, where and again. What a stage computes is in `safegene.pipeline.stages`."""
