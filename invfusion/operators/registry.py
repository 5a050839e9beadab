"""Operators by kind. Being registered makes an operator's spec readable, and enrols it in the contract tests.

A user's own joins by the decorator: `@OPERATORS.register` above its class.
"""

from typing import Any

from invfusion.errors import OperatorError
from invfusion.names import Registry, unknown
from invfusion.operators.base import LinearOperator

OPERATORS: Registry[type[LinearOperator]] = Registry("operator kind")


def operator_type(kind: Any, plugin: str | None = None) -> type[LinearOperator]:
    """The class of a kind; raises `OperatorError` with the nearest one, or the plug-in that has to be loaded."""
    if isinstance(kind, str) and kind in OPERATORS:
        return OPERATORS[kind]
    if plugin is not None:
        raise OperatorError(
            f"the operator '{str(kind)[:80]}' comes from the plug-in '{plugin}', which is not loaded: have "
            f"{plugin}.py or its package at hand, and name it under 'plugins' in params.yaml, or call "
            f"invfusion.plugins.load_plugins(['{plugin}'])"
        )
    raise OperatorError(unknown("operator kind", kind, OPERATORS))
