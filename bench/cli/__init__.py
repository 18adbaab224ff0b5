"""The commands: the only layer that parses arguments."""
