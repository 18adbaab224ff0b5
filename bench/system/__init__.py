"""The operating system and the machine: files, locks, signals, processes and devices."""
