"""Text that a node shows in itself."""

from __future__ import annotations

from typing import Any

import server


def show(text: str, node: Any) -> None:
    """Show ``text`` inside the node with the id ``node``, where this host can."""
    instance = getattr(server.PromptServer, "instance", None)
    send = getattr(instance, "send_progress_text", None)
    if send is not None and node is not None:
        send(text, str(node))
