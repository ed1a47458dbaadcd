"""LoRAs and merges by the host's own patches."""
