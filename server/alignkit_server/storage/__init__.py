"""What projects have on disk: measured, and given back."""
