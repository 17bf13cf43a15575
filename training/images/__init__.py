"""Which images a run sees, and in which order."""
