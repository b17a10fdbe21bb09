"""Services under a supervisor, and the replay of past months."""
