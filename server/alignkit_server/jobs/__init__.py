"""Fine-tuning jobs: their API, their record, and the workflow that runs them."""
