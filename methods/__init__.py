"""Post-training methods, one per file."""
