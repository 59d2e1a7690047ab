"""Items and events: restarts of failed attempts."""
