"""Where images come from. A new source is one file and one entry in `_Members`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.data.sources.base import Listing, Source, SourceImage
from invfusion.data.sources.dead_leaves import DeadLeavesConfig
from invfusion.data.sources.digits import DigitsConfig
from invfusion.data.sources.folder import FolderConfig
from invfusion.data.sources.shards import ShardsConfig
from invfusion.data.sources.zip import ZipConfig
from invfusion.names import Registry, kind_of

_Members = DigitsConfig | DeadLeavesConfig | FolderConfig | ZipConfig | ShardsConfig

SourceConfig = Annotated[_Members, Field(discriminator="kind")]

SOURCES: Registry[type[_Members]] = Registry(
    "source of images", ((kind_of(member), member) for member in get_args(_Members))
)

__all__ = ["SOURCES", "Listing", "Source", "SourceConfig", "SourceImage"]
