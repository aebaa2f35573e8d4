"""Fine-tuning jobs: API, database queries, and the checks before a job is stored."""
