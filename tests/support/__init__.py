"""What the tests share: models, servers and consumers that a test drives step by step."""
