"""What the Prefect server offers to start: the work pool, one deployment for each job, and the watch over heartbeats.

`python -m flows.deployments` registers all of it with the server at PREFECT_API_URL; doing so again changes nothing.
"""

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
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
from flows.worker import POOL

log = logging.getLogger(__name__)

NAME = "gpu"
TAGS: Mapping[Any, list[str]] = {
    **{jobs.JOBS[name]: list(stage.tags) for name, stage in STAGES.items()},
    jobs.promote: ["registry"],
    jobs.rollback: ["registry"],
    jobs.reproduce: ["gpu", "pipeline"],
}
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
        log.info("deployments in work pool '%s': %s", POOL, ", ".join(f"{flow.name}/{NAME}" for flow in TAGS))


async def register_all() -> None:
    """The work pool, the deployments and the watch."""
    async with get_client() as client:
        await _create_pool(client)
        for flow, tags in TAGS.items():
            await _deploy(client, flow, tags)
        await _watch_heartbeats(client)


async def _create_pool(client: PrefectClient) -> None:
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    # A run whose output is a pipe to its worker dies of its next line when the worker is killed.
    properties["stream_output"]["default"] = False
    # Without a detour through a process that fetches code: a worker has its working copy.
    properties["command"]["default"] = "python -m prefect.engine"
    try:
        await client.read_work_pool(POOL)
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


async def _deploy(client: PrefectClient, flow: Any, tags: list[str]) -> None:
    schedules = SCHEDULES.get(flow)
    with contextlib.suppress(ObjectNotFound):
        await client.read_deployment_by_name(f"{flow.name}/{NAME}")
        schedules = None  # whether it is on is the user's choice by now
    deployment = RunnerDeployment.from_flow(
        flow,
        name=NAME,
        work_pool_name=POOL,
        tags=tags,
        description=flow.description,
        schedules=schedules,
        # By name: each host's worker finds it in its own working copy.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    await deployment.aapply()


async def _watch_heartbeats(client: PrefectClient) -> None:
    """Runs of a host that vanished: where heartbeats stop, the server itself marks the run as crashed."""
    if await client.read_automations_by_name(WATCH):
        return
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=datetime.timedelta(seconds=SILENCE_S),
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=f"no heartbeat for {SILENCE_S} s")
    await client.create_automation(AutomationCore(name=WATCH, trigger=trigger, actions=[action]))


if __name__ == "__main__":
    main()
