"""Parameters in files: rules between layouts, reading of tensor files, and loading of modules."""
