"""Promise 4: stop stops."""
