"""What the sections of the chapter on fine-tuning a little share: data, tasks and small models that are things of their own."""
