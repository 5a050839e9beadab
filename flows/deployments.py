"""What the Prefect server offers to start: the work pools, a deployment for each job, and the watch over heartbeats.

`python -m flows.deployments` registers all of it with the server at PREFECT_API_URL; doing so again adds what is
missing and brings forms up to date, and changes nothing that somebody has set.
"""

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker

from flows import entry, jobs
from flows.stages import STAGES
from flows.worker import POOL, POOLS, REGISTRY

log = logging.getLogger(__name__)

NAME = "gpu"
TAGS: Mapping[Any, list[str]] = {
    **{jobs.JOBS[name]: list(stage.tags) for name, stage in STAGES.items()},
    jobs.promote: ["registry"],
    jobs.rollback: ["registry"],
    jobs.reproduce: ["gpu", "pipeline"],
}
# A decision about the champion does not wait behind trainings.
WHERE: Mapping[Any, str] = {flow: REGISTRY if flow in (jobs.promote, jobs.rollback) else POOL for flow in TAGS}
# Every night whatever has become stale; off until somebody turns it on.
NIGHTLY = Schedule(cron="0 3 * * *", timezone="UTC", active=False)
SCHEDULES: Mapping[Any, list[Schedule]] = {jobs.reproduce: [NIGHTLY]}
WATCH = "crash runs whose heartbeat stopped"
SILENCE_S = 90


def main() -> None:
    """Register everything."""
    with entry.clear_ends():
        entry.check_prefect()
        asyncio.run(register_all())
        log.info("deployments: %s", ", ".join(f"{flow.name}/{NAME} in pool '{pool}'" for flow, pool in WHERE.items()))


async def register_all() -> None:
    """The work pools, the deployments and the watch."""
    async with get_client() as client:
        for pool in POOLS:
            await _create_pool(client, pool)
        ids = [await _deploy(client, flow, pool) for flow, pool in WHERE.items()]
        await _watch_heartbeats(client, ids)


async def _create_pool(client: PrefectClient, pool: str) -> None:
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


async def _deploy(client: PrefectClient, flow: Any, pool: str) -> UUID:
    """A deployment, or of one that there is already its form alone, which belongs to the code."""
    deployment = RunnerDeployment.from_flow(
        flow,
        name=NAME,
        work_pool_name=pool,
        tags=TAGS[flow],
        description=flow.description,
        schedules=SCHEDULES.get(flow),
        # By name: each host's worker finds it in its own working copy.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    try:
        found = await client.read_deployment_by_name(f"{flow.name}/{NAME}")
    except ObjectNotFound:
        return await deployment.aapply()
    form = flow.parameters.model_dump(exclude_unset=True)
    if found.parameter_openapi_schema != form:
        await client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=form))
    return found.id


async def _watch_heartbeats(client: PrefectClient, ids: Sequence[UUID]) -> None:
    """Runs of a host that vanished: where heartbeats stop, the server itself marks the run as crashed.

    Heartbeats name the deployment of a run: others' runs, which may beat more slowly, are none of our business.
    """
    ours = {"prefect.resource.role": "deployment", "prefect.resource.id": [f"prefect.deployment.{id}" for id in ids]}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        # Whatever else becomes of a run, such as its end or its suspension, is a sign of life as well.
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=datetime.timedelta(seconds=SILENCE_S),
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=f"no heartbeat for {SILENCE_S} s")
    for found in await client.read_automations_by_name(WATCH):
        if (known := getattr(found.trigger, "match_related", None)) != trigger.match_related:
            log.debug("the watch looks after %s instead of %s", ours, known)
            watched = found.trigger.model_copy(update={"match_related": trigger.match_related})
            core = found.model_dump(include=set(AutomationCore.model_fields)) | {"trigger": watched.model_dump()}
            await client.update_automation(found.id, AutomationCore.model_validate(core))
        return
    await client.create_automation(AutomationCore(name=WATCH, trigger=trigger, actions=[action]))


if __name__ == "__main__":
    main()
