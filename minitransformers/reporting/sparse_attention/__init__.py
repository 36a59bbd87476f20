"""What the sections of the chapter on sparse attention share: data, tasks and small models that are things of their own."""
