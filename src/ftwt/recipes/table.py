"""Recipes by name, as modules declare them."""

from __future__ import annotations

from collections.abc import Callable

from ..config import RunConfig

Recipe = Callable[[], RunConfig]


class Recipes(dict[str, Recipe]):
    """Functions without arguments that return a `RunConfig`, by name; docstrings describe them."""

    def add(self, function: Recipe) -> Recipe:
        """Declare a recipe by its function's name (a decorator)."""
        self[function.__name__.replace("_", "-")] = function
        return function

    def add_row(self, name: str, docstring: str, config: RunConfig) -> None:
        """Declare a recipe that is a row of a table, with its docstring."""

        def recipe() -> RunConfig:
            return config

        recipe.__doc__ = docstring
        self[name] = recipe
