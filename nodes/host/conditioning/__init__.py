"""What goes along with a prompt: weights of words, regions, image prompts, ControlNets."""
