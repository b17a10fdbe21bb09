"""The files of a model, and what MLflow knows of it."""
