"""Image sources, shards, and the deterministic stream of training batches.

What reads or writes WebDataset shards is imported from its own module (`invfusion.data.shards`, `.staging`, `.build`),
so that training and restoring need no webdataset.
"""

from invfusion.data.manifest import SPLITS, Split
from invfusion.data.order import indices
from invfusion.data.staged import StagedDataset
from invfusion.data.stream import Batch, TrainingStream

__all__ = ["SPLITS", "Batch", "Split", "StagedDataset", "TrainingStream", "indices"]
