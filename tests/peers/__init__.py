"""The test-suites of janus and CPython, run against `queuestream.mixed_queue.MixedQueue`."""
