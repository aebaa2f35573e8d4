"""The engines of the server that answers, for admins."""
