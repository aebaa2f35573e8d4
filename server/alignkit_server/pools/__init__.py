"""Slots and shared work that all requests of a running server divide among themselves."""
