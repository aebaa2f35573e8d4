"""Uploads in parts, which become files once they are complete."""
