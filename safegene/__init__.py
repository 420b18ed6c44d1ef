"""safegene: safety as a reusable, gated, audited part of every fine-tune (SafeGene, arXiv 2606.06519)."""

__version__ = "0.1.0"
