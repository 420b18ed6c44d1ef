"""Models: loading, patching and generation, in this process or on an OpenAI-compatible server."""
