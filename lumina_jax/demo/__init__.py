"""The page of `lumina demo`: drawing with trained runs in a browser."""
