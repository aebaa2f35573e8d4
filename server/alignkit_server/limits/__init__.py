"""What one project may use, and how fast."""
