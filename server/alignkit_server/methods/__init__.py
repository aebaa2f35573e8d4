"""The methods that a job can name, described."""
