"""Work on a tenant's data in child processes with bounded memory and time."""
