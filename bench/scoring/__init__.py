"""Pictures, the scorers that judge them, and where both come from."""
