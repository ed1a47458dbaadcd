"""Training with the host's models."""
