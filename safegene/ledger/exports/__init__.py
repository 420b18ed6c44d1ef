"""Records in the formats of other tools: OpenLineage, CycloneDX, Hugging Face model cards, GTO tags, MLflow's registry.

An export reads records and releases and nothing else; it decides nothing. Only `mlflow` asks a server, the one that is
named. What a record does not say is left out of an export, never guessed.
"""
