"""Writes the bundled workflows and subgraph blueprints from short recipes.

A recipe (:mod:`recipes`) says which nodes there are, in which step, with which values and wires. :mod:`layout` places
them, :mod:`write` checks them against the node definitions of a running server and makes the frontend's JSON of them.
``python3 dev.py run -m tools.authoring`` rewrites every file.
"""

from __future__ import annotations
