"""The real clients of model providers, against a provider on loopback."""
