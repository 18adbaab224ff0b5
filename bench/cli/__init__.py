"""The commands: the only room that parses arguments."""
