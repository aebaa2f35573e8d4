"""The durable workflow of a job: its queue, its training, its publishing."""
