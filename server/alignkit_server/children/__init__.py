"""Work on a tenant's data in processes of its own, bounded in memory and time."""
