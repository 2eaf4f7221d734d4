"""Layers, a file for each family; forward right above backward."""
