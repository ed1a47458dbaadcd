"""Checkpoints: which are published, where they lie on this computer, what is missing, and how it is fetched.

The way through: :mod:`catalogue` (what exists) -> :mod:`find` (what is here) -> :mod:`plan` (what is missing) ->
:mod:`fetch` (get it). Nothing here knows the host; folders, progress and interrupts are handed in.
"""
