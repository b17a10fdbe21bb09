"""Checks of deploy/, and releases of models to clusters."""
