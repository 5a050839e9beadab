"""Distributions over operators, one family per file. A new family is one file and one entry in `mixture.Family`."""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from invfusion.degradations.base import DegradationFamily
from invfusion.degradations.mixture import FAMILIES, Family, Mixture, members_of
from invfusion.plugins import accepts_plugins

AnyFamily = Annotated[
    Annotated[Family | Mixture, Field(discriminator="kind")],
    accepts_plugins(FAMILIES, DegradationFamily, "mixture"),
    SerializeAsAny(),
]

__all__ = ["FAMILIES", "AnyFamily", "DegradationFamily", "Family", "Mixture", "members_of"]
