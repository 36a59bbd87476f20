"""What the sections of the chapter on whole models share: data, tasks and small models that are things of their own."""
