"""The base class of every configuration section."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable, and an unknown key is an error. `params.yaml` is validated into these."""

    model_config = ConfigDict(frozen=True, extra="forbid")
