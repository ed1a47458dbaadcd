"""Workflow files as the frontend saves them: read as a graph, and turned into the prompt that a server executes."""
