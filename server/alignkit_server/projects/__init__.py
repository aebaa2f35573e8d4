"""Projects, their keys and their limits, for admins."""
