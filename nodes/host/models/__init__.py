"""The host's model objects around the networks: MODEL, CLIP, VAE, and how they are loaded."""
