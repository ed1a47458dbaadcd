"""What reaches into the blocks: layers, regions, windows, Stage B in tiles."""
