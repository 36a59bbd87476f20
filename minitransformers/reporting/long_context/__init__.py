"""What the sections of the chapter on long texts share: data, tasks and small models that are things of their own."""
