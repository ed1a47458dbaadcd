"""Outputs that have nothing to give: the host stops there and says why, in our nodes as in everybody's."""

from __future__ import annotations

from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker


def give_or_block(value: Any, sentence: str) -> Any:
    """``value``, or for None a block that carries ``sentence`` to whatever node the output is wired to."""
    return ExecutionBlocker(sentence) if value is None else value


def give_or_block_each(where: str, **values: Any) -> list[Any]:
    """``values``, those that are None blocked by what the node ``where`` was not given under the same name."""
    advice = "Wire one into its input '{0}', or wire the next node to the loader."
    return [
        give_or_block(value, f"{where} was given no {name}, so its output '{name}' has none. {advice.format(name)}")
        for name, value in values.items()
    ]
