"""Base models and adapters on disk: import, load, what can be trained, chat templates."""
