"""Where training runs: one protocol, local processes behind it by default."""
