"""Where images come from: one file per source, registered here."""

from typing import Annotated

from pydantic import Field

from invfusion.data.sources.base import Listing, Source, SourceImage
from invfusion.data.sources.dead_leaves import DeadLeavesConfig
from invfusion.data.sources.digits import DigitsConfig
from invfusion.data.sources.folder import FolderConfig
from invfusion.data.sources.shards import ShardsConfig
from invfusion.data.sources.zip import ZipConfig

SourceConfig = Annotated[
    DigitsConfig | DeadLeavesConfig | FolderConfig | ZipConfig | ShardsConfig, Field(discriminator="kind")
]
SOURCES = {
    "digits": DigitsConfig,
    "dead_leaves": DeadLeavesConfig,
    "folder": FolderConfig,
    "zip": ZipConfig,
    "shards": ShardsConfig,
}

__all__ = ["SOURCES", "Listing", "Source", "SourceConfig", "SourceImage"]
