"""Hybrids: models that mix recurrences with attention."""
