"""The documentation site, built from the notebooks and the latest run."""
