"""Scaling laws: a grid of runs, their table, the law fitted to it, and what the law predicts."""
