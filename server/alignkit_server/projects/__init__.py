"""Projects, their keys and their limits, as an admin sees them."""
