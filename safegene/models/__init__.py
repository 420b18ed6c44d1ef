"""Models in memory: load, patch and generate, here or on an OpenAI-compatible server."""
