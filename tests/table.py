"""A test over many rows as one test that tells of every row that fails it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each(rows: Iterable[Any], name: Callable[[Any], str] = str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test on every row, its first argument; the other arguments are fixtures."""
    table = list(rows)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def on_all(**fixtures: Any) -> None:
            assert table, "the table is empty"
            wrong = []
            for row in table:
                try:
                    test(row, **fixtures)
                except AssertionError as error:
                    wrong.append(f"{name(row)}: {error}")
                except Exception as error:
                    raise AssertionError(f"{name(row)} ended the table") from error
            assert not wrong, "\n" + "\n".join(wrong)

        on_all.__name__, on_all.__doc__, on_all.__module__ = test.__name__, test.__doc__, test.__module__
        signature = inspect.signature(test)
        on_all.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        return on_all

    return decorate
