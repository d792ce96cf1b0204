"""What a train step costs on TPUs that are not here: compiled ahead of time and read from the compiled program."""
