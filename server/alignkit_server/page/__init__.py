"""The page at `/`: static files that use the public API as any client does."""
