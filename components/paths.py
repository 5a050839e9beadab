"""Where the files lie that more than one room reads, relative to the project's root."""

from pathlib import Path

STAGED = Path("artifacts/staged")
MODELS = Path("artifacts/models")
LOGS = Path("artifacts/logs")
# Of an evaluation: its records, and all that stands behind them.
EVALUATION = Path("reports/evaluation.json")
DETAILS = Path("artifacts/evaluation")
