"""Operations: pages of many targets, and what else runs for months."""
