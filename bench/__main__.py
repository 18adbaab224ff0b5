"""Entry point of `python -m bench`, which is the same as the `bench` command."""

from bench.cli.app import main

main()
