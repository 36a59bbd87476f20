"""Training: data, optimiser, schedule, loop and checkpoints."""
