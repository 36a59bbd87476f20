"""Long texts: cut, retrieved, or read piece by piece with a memory of what came before."""
