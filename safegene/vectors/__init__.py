"""The safety vector: low-rank factors, their linear algebra and their file format."""
