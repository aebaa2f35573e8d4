"""`python -m alignkit` is the `alignkit` command."""

from alignkit.cli import main

main()
