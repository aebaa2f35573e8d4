"""Servers that share a database: each sends heartbeats and takes over the jobs of dead ones."""
