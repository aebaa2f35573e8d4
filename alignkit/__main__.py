"""Run `python -m alignkit` as the `alignkit` command."""

from alignkit.cli import main

main()
