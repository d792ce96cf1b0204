"""Pixels and samples to files."""
