"""API keys and the projects they belong to."""
