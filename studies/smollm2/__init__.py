"""The recovery study on a real family, SmolLM2-135M."""
