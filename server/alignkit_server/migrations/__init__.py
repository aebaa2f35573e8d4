"""Migrations of the database schema (alembic)."""
