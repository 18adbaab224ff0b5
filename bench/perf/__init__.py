"""`bench perf`: a machine's peak rates, and how much of them kernels and training updates reach."""
