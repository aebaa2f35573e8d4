"""Limits of a project: quotas, request rates and request sizes."""
