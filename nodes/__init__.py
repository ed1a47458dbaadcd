"""The nodes that an artist sees: one file an area, thin classes, literal ids."""
