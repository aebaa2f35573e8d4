"""The durable workflow of a job: its queue, training and publishing."""
