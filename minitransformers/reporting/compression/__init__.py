"""What the sections of the chapter on smaller models share: data, tasks and small models that are things of their own."""
