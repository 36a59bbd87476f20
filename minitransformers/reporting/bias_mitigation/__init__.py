"""What the sections of the chapter on bias share: data, tasks and small models that are things of their own."""
