"""Where the files lie that more than one room reads, relative to the project's root."""

import re
from pathlib import Path

STAGED = Path("artifacts/staged")
MODELS = Path("artifacts/models")
LOGS = Path("artifacts/logs")
# Of an evaluation: its records, and all that stands behind them.
EVALUATION = Path("reports/evaluation.json")
COSTS = Path("reports/costs.json")
DETAILS = Path("artifacts/evaluation")


def file_name(method: str) -> str:
    """A method's name as a file's: "Palette MMSE" is palette_mmse."""
    return re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")
