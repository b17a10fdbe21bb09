"""What every other package stands on: files and the repository."""
