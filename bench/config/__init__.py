"""The specification of a run: settings, their bounds, and how command-line options become a `Spec`."""
