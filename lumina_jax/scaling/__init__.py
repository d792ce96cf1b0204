"""Scaling laws: a grid of small runs, the law fitted to it, and what the law predicts."""
