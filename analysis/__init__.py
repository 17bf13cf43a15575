"""See and measure queries, keys, values and attention."""
