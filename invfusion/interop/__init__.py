"""Other libraries' operators and models here, and ours there. Each library is needed only where it is used."""

from invfusion.interop.deepinv import (
    from_deepinv,
    image_from_deepinv,
    image_to_deepinv,
    measurement_from_deepinv,
    to_deepinv,
    to_deepinv_reconstructor,
)

__all__ = [
    "from_deepinv",
    "image_from_deepinv",
    "image_to_deepinv",
    "measurement_from_deepinv",
    "to_deepinv",
    "to_deepinv_reconstructor",
]
