"""Regular tasks: delete what expired, measure jobs and enforce their limits, cut logs."""
