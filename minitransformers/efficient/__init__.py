"""The same attention for less: tiles that never hold all scores, caches for decoding, pages of a shared pool."""
