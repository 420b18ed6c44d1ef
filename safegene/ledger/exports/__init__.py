"""Records in the formats of other tools: OpenLineage, CycloneDX, Hugging Face model cards, GTO tags.

An export reads records and releases and nothing else; it decides nothing and asks no network. What a record does not
say is left out of an export, never guessed.
"""
