"""Preference data: forms, validation, statistics and preview."""
