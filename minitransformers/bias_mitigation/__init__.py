"""Bias: what can be measured, what can be done before, in and after training, and what neither shows."""
