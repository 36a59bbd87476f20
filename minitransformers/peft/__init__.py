"""Fine-tuning a little: what is trained is a thousandth of a model, and the model stays as it was."""
