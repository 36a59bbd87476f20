"""Attention over chosen pairs only: windows, random blocks, hashes, clusters, strides, and blocks that a query selects."""
