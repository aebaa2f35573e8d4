"""Training on a Ray cluster: the server's half (executor, jobs) and the nodes' half (entry, supervisor)."""
