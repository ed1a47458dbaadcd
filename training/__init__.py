"""Training recipes. Nothing in here is needed, or imported, when pictures are made."""
