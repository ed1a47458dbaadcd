"""The schedule, the steps, guidance and the noise of a seed."""
