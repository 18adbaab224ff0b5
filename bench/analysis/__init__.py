"""Statistics and comparisons of recorded runs. Imports no torch."""
