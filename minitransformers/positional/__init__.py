"""Positions: how a set of tokens becomes a sequence."""
