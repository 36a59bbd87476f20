"""Smaller models: fewer weights, fewer bits a weight, a smaller student, thinner matrices."""
