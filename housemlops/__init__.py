"""The whole life of a house-price model, exported from the notebooks in nbs/."""
