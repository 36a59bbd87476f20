"""What the site adds to plain Markdown; each module is a few pure functions that tests can call."""
