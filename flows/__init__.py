"""Prefect flows: when and where.

The tools read these settings when they are imported, so they are set here, before any of them is; a value that the user
has set wins.
"""

import os
from pathlib import Path

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # What MLflow unpickles could run commands; nothing of ours is pickled.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # DVC unpickles what lies there, and its own choice is a folder that every user of the host may write to.
    "DVC_SITE_CACHE_DIR": str(Path(".dvc/tmp/site").absolute()),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # Wherever a flow starts: a server that sees no heartbeat for a while takes the run for dead.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Prefect's own lines go to its API; the console belongs to the pipeline.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "components,invfusion",
    "PREFECT_HOME": str(Path(".prefect").absolute()),
    # Threads that spin while they wait cost up to ten times the time where another process wants a core.
    "OMP_WAIT_POLICY": "PASSIVE",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
