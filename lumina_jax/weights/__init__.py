"""Parameters in files: tables of names between layouts, tensor files read one by one, and modules filled from them."""
