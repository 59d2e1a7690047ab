"""What goes wrong around a stream, one fault a test; the rest is in `tests.promises`."""
