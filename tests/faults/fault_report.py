"""What the fault tests share: how much is tried, and the lines of the report."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
IS_FULL = os.environ.get("INVFUSION_FAULTS") == "full"


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    fault: str
    tried: int
    lost: str
