"""Where images come from. A new source is one file and one entry in `_Members`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.data.sources.base import Listing, Source, SourceImage
from invfusion.data.sources.dead_leaves import DeadLeaves
from invfusion.data.sources.digits import Digits
from invfusion.data.sources.folder import Folder
from invfusion.data.sources.shards import Shards
from invfusion.data.sources.zip import Zip
from invfusion.names import Registry, kind_of

_Members = Digits | DeadLeaves | Folder | Zip | Shards

AnySource = Annotated[_Members, Field(discriminator="kind")]

SOURCES: Registry[type[_Members]] = Registry(
    "source of images", ((kind_of(member), member) for member in get_args(_Members))
)

__all__ = ["SOURCES", "AnySource", "Listing", "Source", "SourceImage"]
