"""`StreamHandler` and `QueueStreamHandler`, used on their own."""
