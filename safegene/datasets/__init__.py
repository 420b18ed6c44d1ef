"""Prompt sets, task sets and public suites: read, checked, and kept apart from one another."""
