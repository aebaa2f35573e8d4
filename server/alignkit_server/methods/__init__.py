"""Descriptions of the methods that a job can use."""
