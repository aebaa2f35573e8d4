"""Preview and estimate of a job before it is created."""
