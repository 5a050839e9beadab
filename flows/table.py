"""Make a table or figure of the paper: `make table T=3`, `make figure F=4`.

DVC first brings the pipeline's own models up to date, as far as the table uses them; then
`components.reporting.table` trains what else is missing, evaluates and writes reports/tables/. measurements.dvc
versions the frozen measurement sets.
"""

import logging
import subprocess
import sys
from pathlib import Path

from prefect import flow

from components import cli
from components.params import Params
from components.paths import MODELS
from components.reporting.experiments import experiment_names, load_experiment
from components.reporting.table import SETS
from components.reporting.table import table as component
from components.training.zoo import imported_from, pipeline_models
from flows import entry
from flows.dvc_runs import dvc_environment
from flows.reproduce import checked_params, run_stale
from flows.stages import target
from flows.workspaces import PARAMS, working_copy
from invfusion.errors import DataError, InvFusionError

log = logging.getLogger(__name__)

VERSION = SETS.with_suffix(".dvc")


@flow(name="table", flow_run_name="{name}")
def table(name: str = "table_01", params: str = "params.yaml", trains: bool = True, seeds: int = 1) -> Path:
    """Make one table or figure of the paper, with so many seeds."""

    def make_table(settings: Params, chosen: str) -> Path:
        return component(settings, chosen, trains, seeds)

    return entry.step(make_table, params, name, devices=lambda p: p.runtime.n_devices)


def bring_sets() -> None:
    """Fetch the frozen measurement sets that measurements.dvc names, if they are not here.

    Raises:
        DataError: they cannot be had; tables on other measurements would not be the ones that were promised.
    """
    if VERSION.exists() and not SETS.exists() and _dvc("pull", str(SETS)):
        raise DataError(
            f"{VERSION} names frozen measurement sets that are neither here nor in the DVC remote (its own message "
            f"stands above); without {VERSION}, they are drawn anew"
        )


def version_sets() -> None:
    """Have DVC keep the frozen measurement sets under their hash."""
    if SETS.exists() and _dvc("add", str(SETS)):
        log.warning("%s could not be put under DVC; `dvc add %s` says why", SETS, SETS)


def _dvc(*arguments: str) -> int:
    command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
    return subprocess.run(command, env=dvc_environment(), check=False).returncode


def main() -> int:
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("--name", default="", help="such as table_03 or figure_04; default: all of them")
    parser.add_argument("--profile", default="", help="a name under profiles/, to put in place of params.yaml first")
    parser.add_argument("--discard-edits", action="store_true", help="even where values of params.yaml are lost")
    parser.add_argument("--seeds", type=int, default=1, help="make it so often, trainings too, and tell the spread")
    parser.add_argument("--no-train", action="store_true", help="use the models at hand")
    arguments = parser.parse_args()
    failed: list[str] = []
    with entry.clear_ends(), working_copy("a table"):
        params = checked_params(arguments.profile, arguments.discard_edits)
        bring_sets()
        for name in [arguments.name] if arguments.name else experiment_names():
            try:
                models = [] if arguments.no_train else pipeline_models(params, load_experiment(name))
                models = [model for model in models if imported_from(MODELS / model) is None]
                trainings = [target(params, "train", model) for model in models]
                if code := run_stale(params, ["stage", *trainings], force=False):
                    return code
                table(name, str(PARAMS), not arguments.no_train, arguments.seeds)
            except InvFusionError as error:
                failed.append(f"{name}: {error}")
        version_sets()
    for line in failed:
        sys.stderr.write(f"error: {line}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
