"""Scaling laws: a grid of runs, and what it says about larger ones."""
