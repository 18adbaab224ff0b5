"""PickScore: a learned score of human preference."""
