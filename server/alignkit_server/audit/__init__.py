"""The audit log: every action on keys, projects and permissions, and every deletion."""
