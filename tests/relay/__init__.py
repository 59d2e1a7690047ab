"""Streams that cross processes, on real servers."""
