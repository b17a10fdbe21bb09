"""A generated server while it runs."""
