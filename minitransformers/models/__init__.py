"""Whole models, made of parts that the catalogue lists."""
