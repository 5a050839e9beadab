"""Work pools of the Prefect server: those of hosts with a working copy, whose workers run processes, and those whose
jobs run in containers, with what deploy/ says of them laid over Prefect's own template.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from components.params import read_values
from components.profiles import overlay
from flows.container import REMOTE
from flows.worker import FIRST, POOL
from invfusion.errors import ConfigError

# What the jobs of a container are told of the servers beside Prefect's.
TOLD = (REMOTE, "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
CONTAINERS = ("docker", "kubernetes")


@dataclass(frozen=True)
class Containers:
    """A pool whose jobs run in containers.

    kind: of CONTAINERS, and the pool's name. gpus: of a job that says nothing.
    """

    kind: str
    image: str
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def told(self) -> dict[str, str]:
        """What the jobs' environment says.

        Raises:
            ConfigError: results would have nowhere to go.
        """
        if missing := [name for name in TOLD[:2] if not self.environment.get(name)]:
            raise ConfigError(
                f"the files of a container do not last: set {' and '.join(missing)}, where its jobs take their results"
            )
        return {name: self.environment[name] for name in TOLD if self.environment.get(name)}

    def template(self, own: dict[str, Any]) -> dict[str, Any]:
        """The pool's template, made of Prefect's own."""
        ours = read_values(Path("deploy") / f"{self.kind}_pool.yaml")
        # As a whole: parts of two manifests make none.
        own["job_configuration"].pop("job_manifest", None)
        overlay(own, ours)
        if self.kind == "docker" and not self.gpus:
            del own["job_configuration"]["container_create_kwargs"]["device_requests"]
            del own["variables"]["properties"]["gpus"]
        return self.updated(own)

    def updated(self, template: dict[str, Any]) -> dict[str, Any]:
        """The template with what was named on the command line."""
        properties = template["variables"]["properties"]
        properties["image"]["default"] = self.image
        if "gpus" in properties:
            properties["gpus"]["default"] = self.gpus
        properties["env"]["default"] = {**properties["env"].get("default", {}), **self.told()}
        return template


async def create(client: PrefectClient, pool: str) -> None:
    """A pool for workers of hosts with a working copy, unless there is one."""
    with contextlib.suppress(ObjectNotFound):
        await client.read_work_pool(pool)
        return
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    # A run whose output is a pipe to its worker dies of its next line when the worker is killed.
    properties["stream_output"]["default"] = False
    # Without a detour through a process that fetches code: a worker has its working copy.
    properties["command"]["default"] = "python -m prefect.engine"
    await client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    if pool == POOL:
        await _add_first(client, pool)


async def create_containers(client: PrefectClient, wanted: Containers) -> None:
    """A pool of containers; of one that there is, what was named this time."""
    wanted.told()
    with contextlib.suppress(ObjectNotFound):
        found = (await client.read_work_pool(wanted.kind)).base_job_template
        await client.update_work_pool(wanted.kind, WorkPoolUpdate(base_job_template=wanted.updated(found)))
        return
    known = await client.read_worker_metadata()
    own = known[f"prefect-{wanted.kind}"][wanted.kind]["default_base_job_configuration"]
    template = wanted.template(own)
    await client.create_work_pool(WorkPoolCreate(name=wanted.kind, type=wanted.kind, base_job_template=template))
    await _add_first(client, wanted.kind)


async def _add_first(client: PrefectClient, pool: str) -> None:
    """What waits there is served before the pool's other runs."""
    with contextlib.suppress(ObjectAlreadyExists):
        await client.create_work_queue(FIRST, work_pool_name=pool, priority=1)
