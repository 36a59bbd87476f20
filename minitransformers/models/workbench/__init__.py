"""The workbench: one model of parts that are chosen by name, to compare them in. The only place that resolves names."""
