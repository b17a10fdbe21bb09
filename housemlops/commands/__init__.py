"""The verbs of the command line, in modules by subject."""
