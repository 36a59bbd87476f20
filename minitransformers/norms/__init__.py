"""Normalisation: keeping every layer's input at one scale."""
