"""Models that attend to the text with some of their heads: which, what they cost, and how good they are."""
