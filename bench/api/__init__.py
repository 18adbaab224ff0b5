"""The contracts of plug-ins: methods, tasks, and what the harness hands them."""
