"""Results go to MLflow through this package alone: runs with their metrics, and the registry of models.

MLflow is imported inside functions, since the import takes seconds and most of the pipeline's commands do not need it.
"""

from components.tracking.client import JOB_PAGE, PAGES, RUN_LINE, MlflowRun, Run, start_run
from components.tracking.provenance import git_revision, package_versions
from components.tracking.store import absolute, check_reachable, connect, masked, tracking_uri
from components.tracking.versions import Change, Package, Registry, Version

__all__ = [
    "JOB_PAGE",
    "PAGES",
    "RUN_LINE",
    "Change",
    "MlflowRun",
    "Package",
    "Registry",
    "Run",
    "Version",
    "absolute",
    "check_reachable",
    "connect",
    "git_revision",
    "masked",
    "package_versions",
    "start_run",
    "tracking_uri",
]
