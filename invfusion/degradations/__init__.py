"""Distributions over operators, one family per file. A new family is one file and one entry in `mixture.Family`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.degradations.base import DegradationFamily
from invfusion.degradations.mixture import Family, MixtureConfig

FAMILIES: dict[str, type[DegradationFamily]] = {
    family.model_fields["kind"].default: family for family in get_args(Family)
}

DegradationConfig = Annotated[Family | MixtureConfig, Field(discriminator="kind")]

__all__ = ["FAMILIES", "DegradationConfig", "DegradationFamily", "Family", "MixtureConfig"]
