"""The ledger: promoters that are killed between their writes, the cost of a long chain, and of an audit."""
