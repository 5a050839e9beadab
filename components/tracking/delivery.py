"""What a run sends to MLflow, as entries that can wait in a file: each kind with the call that delivers it.

Delivering an entry again does no harm: MLflow stores a metric with the same name, step, time and value once, and an
artifact under the same name once.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Entry = dict[str, Any]

# Errors that sending again cannot help.
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED"}


def deliver(client: Any, entry: Entry) -> bool:
    """Send one entry. False: try again later. An entry that MLflow refuses for good is dropped with a warning."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        SENDERS[entry["kind"]](client, entry)
    except MlflowException as error:
        if error.error_code not in _PERMANENT:
            return False
        log.warning("MLflow refused a result (%s): %s", entry["kind"], error)
    except FileNotFoundError as error:
        log.warning("a result was not logged: %s", error)
    except (OSError, SQLAlchemyError):
        return False
    return True


def _send_metrics(client: Any, entry: Entry) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, entry["timestamp"], step) for name, value, step in entry["rows"]]
    for i in range(0, len(metrics), 1000):
        client.log_batch(entry["run"], metrics=metrics[i : i + 1000])


def _send_params(client: Any, entry: Entry) -> None:
    from mlflow.entities import Param

    rows = [Param(name, value) for name, value in entry["rows"]]
    for i in range(0, len(rows), 100):
        client.log_batch(entry["run"], params=rows[i : i + 100])


def _send_tags(client: Any, entry: Entry) -> None:
    from mlflow.entities import RunTag

    client.log_batch(entry["run"], tags=[RunTag(name, value) for name, value in entry["rows"]])


def _send_image(client: Any, entry: Entry) -> None:
    from PIL import Image

    with Image.open(entry["path"]) as image:
        client.log_image(
            entry["run"], image.convert("RGB"), key=entry["name"], step=entry["nimg"], timestamp=entry["timestamp"]
        )


def _send_artifact(client: Any, entry: Entry) -> None:
    client.log_artifact(entry["run"], entry["path"], entry["folder"])


def _send_dataset(client: Any, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput

    # MLflow keeps 36 characters of a digest; the whole of it is in the tag data.digest.
    dataset = Dataset(entry["name"], entry["digest"][:32], "local", json.dumps({"uri": entry["source"]}))
    client.log_inputs(entry["run"], datasets=[DatasetInput(dataset=dataset)])


def _send_status(client: Any, entry: Entry) -> None:
    client.set_terminated(entry["run"], entry["status"], end_time=entry["timestamp"])


SENDERS: dict[str, Callable[[Any, Entry], None]] = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "image": _send_image,
    "artifact": _send_artifact,
    "dataset": _send_dataset,
    "status": _send_status,
}
