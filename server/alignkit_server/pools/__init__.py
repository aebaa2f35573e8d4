"""Slots and queries that the requests of a running server share."""
