"""What a container begins with: `python -m flows.container COMMAND ...` runs a command once its results have somewhere
to go. The image's own command and the jobs of Docker and Kubernetes work pools are started by it.
"""

import logging
import os
import sys
from pathlib import Path

from dvc.config import Config

from components import cli, tracking
from components.params import load_params
from flows import entry
from flows.workspaces import PARAMS, STATE
from invfusion.errors import ConfigError

log = logging.getLogger(__name__)

# The address of the DVC remote that takes the results.
REMOTE = "INVFUSION_REMOTE"
NAME = "shared"


def prepare() -> None:
    """Let results go where they outlive the container.

    Raises:
        ConfigError: the remote or MLflow's server is not named.
    """
    address = os.environ.get(REMOTE)
    if not address:
        raise ConfigError(
            f"the files of a container do not last: name the DVC remote that takes the results, as "
            f"{REMOTE}=s3://bucket/path"
        )
    store = tracking.tracking_uri(load_params(PARAMS))
    if store.startswith("sqlite:"):
        raise ConfigError(
            f"the files of a container do not last, and MLflow's store is one of them ({store}): set "
            "MLFLOW_TRACKING_URI to the address of a server"
        )
    with Config(str(Path(".dvc").absolute())).edit("local") as own:
        own["remote"] = {**own.get("remote", {}), NAME: {**own.get("remote", {}).get(NAME, {}), "url": address}}
        own["core"] = {**own.get("core", {}), "remote": NAME}
    if not os.path.ismount(STATE):
        log.warning("%s is no volume: a training that is cut short begins anew", STATE.absolute())


def main() -> None:
    command = sys.argv[1:]
    if not command:
        cli.parser(__doc__, params=False).error("a command is missing")
    with entry.clear_ends():
        prepare()
        # In place of this process, so that signals reach it.
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
