"""Every test runs with quiet tools whose files lie outside the project, and with one thread: results do not depend on
the machine, and tests that run side by side do not take each other's cores.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest

# Before any test imports torch, and for what tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# Before any test imports a tool: they read their settings then.
_home = tempfile.TemporaryDirectory(prefix="invfusion-tests-")
os.environ["PREFECT_HOME"] = _home.name
for _name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
    os.environ.pop(_name, None)
for _name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# The tests' own log lines belong to no flow.
os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = ""


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """What would outlast a power cut is not tried here, and many small files would each wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """MLflow leaves the address of its store in the environment, where a later module's processes would find it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests go first, so that no worker ends long after the others."""
    long = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in long)
