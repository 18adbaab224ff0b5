"""The contracts of plug-ins: methods, tasks, and the `Lab` that the harness gives to a method."""
