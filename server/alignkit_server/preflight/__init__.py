"""What a job would train on, and for how long, before it is created."""
