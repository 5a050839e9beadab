"""What every flow's command line shares: quiet tools, clear errors, and a clean end on SIGTERM."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from invfusion.config import load_params
from invfusion.errors import InvFusionError, ServiceError

# Read by the tools when they are imported; a value that the user has set wins.
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # Prefect's own lines go to its API; the console belongs to the pipeline.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "components,invfusion",
    "PREFECT_HOME": str(Path(".prefect").absolute()),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}
SERVER_TIMEOUT_S = 5


def prepare_environment() -> None:
    """Must run before Prefect or MLflow is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def check_prefect() -> None:
    """Where a Prefect server is configured, it must answer.

    Raises:
        ServiceError: names the address and the remedy, within seconds.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S):
            return
    except (URLError, OSError, ValueError) as error:
        raise ServiceError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}); start it with `prefect server start`, "
            "or unset the variable to run without one"
        ) from None


def run(start: Callable[[], Any], params: str) -> None:
    """Run one flow as a process: a deliberate error becomes one line and exit code 1.

    Parameters and services are checked before anything starts.

    SIGTERM becomes SystemExit, so that Prefect marks the run as crashed instead of leaving it running.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("httpx", "alembic", "mlflow", "prefect"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        load_params(params)
        check_prefect()
        start()
    except InvFusionError as error:
        sys.exit(f"error: {error}")
