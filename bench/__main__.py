"""python -m bench."""

from bench.cli.app import main

main()
