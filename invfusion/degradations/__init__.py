"""Distributions over operators, one family per file. A new family is one file and one entry in `mixture.Family`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.degradations.base import DegradationFamily
from invfusion.degradations.mixture import Family, Mixture
from invfusion.names import Registry

FAMILIES: Registry[type[DegradationFamily]] = Registry(
    "degradation family", ((family.model_fields["kind"].default, family) for family in get_args(Family))
)

AnyFamily = Annotated[Family | Mixture, Field(discriminator="kind")]

__all__ = ["FAMILIES", "AnyFamily", "DegradationFamily", "Family", "Mixture"]
