"""The networks, one a file, with their blocks, their published sizes and the memory of a pass."""
