"""Prefect flows: when stages run, with which retries, and what follows. Stages are in `safegene.pipeline.stages`."""
