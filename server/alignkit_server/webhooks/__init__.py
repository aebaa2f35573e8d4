"""Webhooks, which notify a project when its jobs end."""
