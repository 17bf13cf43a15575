"""Many processes: launching, sharding, ending together."""
