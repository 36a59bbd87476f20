"""Attention: each position reads from the others by content."""
