"""What one sees of a run, and what stops it."""
