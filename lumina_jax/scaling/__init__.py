"""What a run costs on hardware that is not here: compiled ahead of time and read from what the compiler wrote."""
