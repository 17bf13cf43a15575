"""Exact statistics of attention, without an N x N matrix."""
