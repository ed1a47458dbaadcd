"""Sampling by the host's own loop."""
