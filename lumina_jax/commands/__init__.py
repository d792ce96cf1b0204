"""The commands of `python -m lumina_jax`, one a file."""
