"""Checkpoint folders of registered models, for `invfusion.restoration.load_model`: models:/invfusion@champion."""

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from components.registry import MAIN
from invfusion.errors import CheckpointError


def checkpoint_folder(address: str) -> Path:
    """The folder of the main checkpoint of a registered model. Raises `CheckpointError` where there is none.

    MLflow's own settings (MLFLOW_TRACKING_URI) say which registry is asked.
    """
    try:
        package = Path(mlflow.artifacts.download_artifacts(address))
    except (MlflowException, OSError, ValueError) as error:
        raise CheckpointError(f"{address}: MLflow does not hand it out ({' '.join(str(error).split())})") from error
    folder = package / "artifacts" / MAIN
    if not folder.is_dir():
        raise CheckpointError(f"{address}: this registered model holds no '{MAIN}' checkpoint")
    return folder
