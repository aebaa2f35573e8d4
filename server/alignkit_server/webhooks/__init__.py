"""Webhooks: a project is told when its jobs end."""
