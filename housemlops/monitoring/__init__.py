"""Judge the champion by the newest sales, and tell people."""
