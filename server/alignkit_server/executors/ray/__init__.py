"""Training on a Ray cluster: the server's side (executor, jobs) and the nodes' side (entry, supervisor)."""
