"""Every error that this project raises on purpose.

Each message names the thing that is wrong and the remedy, so that a user never needs a traceback.
"""


class InvFusionError(Exception):
    """Base of all deliberate errors; entry points print its message without a traceback."""


class ConfigError(InvFusionError):
    """A parameter is missing, unknown or out of range."""


class DataError(InvFusionError):
    """A shard, image or manifest is missing, corrupt or inconsistent."""


class ShapeError(InvFusionError, ValueError):
    """Tensors, operators and models do not fit together."""


class OperatorError(InvFusionError):
    """An operator lacks a capability that was asked of it, or violates its contract."""


class CheckpointError(InvFusionError):
    """A checkpoint is missing, corrupt or of another architecture."""


class NonFiniteError(InvFusionError):
    """A loss or gradient became infinite or not-a-number."""


class WeightsUnavailableError(InvFusionError):
    """Pretrained weights that a metric needs are not on this machine."""


class ServiceError(InvFusionError):
    """A tracking or orchestration server cannot be reached."""
