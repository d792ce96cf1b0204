"""The commands of `lumina`, one a file."""
