"""The command line, and what chapter scripts report with."""
