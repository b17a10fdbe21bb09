"""Exercises, labs and the reading order of the notebooks."""
