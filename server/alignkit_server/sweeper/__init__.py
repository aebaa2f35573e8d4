"""What is done every minute: expired things go, jobs are measured and held to their limits, logs are cut."""
