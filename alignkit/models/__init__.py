"""Base models and adapters on disk: import, loading, trainability checks, chat templates."""
