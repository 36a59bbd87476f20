"""What the sections of the chapter on norms share: data, tasks and small models that are things of their own."""
