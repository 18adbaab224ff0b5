"""What a machine can do, and what of it a run gets: `bench perf`."""
