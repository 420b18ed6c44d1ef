"""Prepare a real family, SmolLM2-135M: an aligned model, degraded copies, fine-tunes, prompt sets, a judge."""
