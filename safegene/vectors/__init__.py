"""The safety vector: low-rank factors, their file format and their linear algebra. Pure but for the file itself."""
