"""Training on a Ray cluster: the server's half (executor, jobs), and the half that runs on nodes (entry, guard)."""
