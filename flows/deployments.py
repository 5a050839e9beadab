"""What the Prefect server offers to start: the work pools, a deployment for each job, and the watch over heartbeats.

`python -m flows.deployments` registers all of it with the server at PREFECT_API_URL; doing so again adds what is
missing and brings forms up to date, and changes nothing that somebody has set. With `docker` or `kubernetes` it is a
pool whose jobs run in containers of an image.
"""

import asyncio
import datetime
import logging
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from components import cli
from components.params import read_values
from flows import entry, jobs, pools
from flows.changes import with_values
from flows.stages import STAGES
from flows.worker import FIRST, POOL, POOLS, REGISTRY
from flows.workspaces import PARAMS

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
# Their results are files; a decision's are not.
IN_CONTAINERS = [flow for flow, pool in WHERE.items() if pool == POOL]
# Every night whatever has become stale; off until somebody turns it on.
NIGHTLY = Schedule(cron="0 3 * * *", timezone="UTC", active=False)
SCHEDULES: Mapping[Any, list[Schedule]] = {jobs.reproduce: [NIGHTLY]}
WATCH = "crash runs whose heartbeat stopped"
SILENCE_S = 90


def main() -> None:
    """Register everything."""
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("kind", nargs="?", choices=pools.CONTAINERS, help="what the containers of a pool run in")
    parser.add_argument("--image", default="invfusion", help="the image of its jobs (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a job that does not say (default: %(default)s)")
    wanted = parser.parse_args()
    with entry.clear_ends():
        entry.check_prefect()
        if wanted.kind:
            asyncio.run(register_containers(pools.Containers(wanted.kind, wanted.image, wanted.gpus)))
            log.info("deployments: %s", ", ".join(f"{flow.name}/{wanted.kind}" for flow in IN_CONTAINERS))
            return
        asyncio.run(register_all())
        log.info("deployments: %s", ", ".join(f"{flow.name}/{NAME} in pool '{pool}'" for flow, pool in WHERE.items()))


async def register_all() -> None:
    """The work pools, the deployments and the watch."""
    async with get_client() as client:
        for pool in POOLS:
            await pools.create(client, pool)
        for flow, pool in WHERE.items():
            await _deploy(client, flow, NAME, pool)
        await _watch_heartbeats(client)


async def register_containers(wanted: pools.Containers) -> None:
    """A pool of containers, its deployments and the watch."""
    async with get_client() as client:
        await pools.create_containers(client, wanted)
        for flow in IN_CONTAINERS:
            await _deploy(client, flow, wanted.kind, wanted.kind)
        await _watch_heartbeats(client)


async def _deploy(client: PrefectClient, flow: Any, name: str, pool: str) -> None:
    """A deployment, or of one that there is already its form alone, which belongs to the code."""
    deployment = RunnerDeployment.from_flow(
        flow,
        name=name,
        work_pool_name=pool,
        work_queue_name=FIRST if pool != REGISTRY and "registry" in TAGS[flow] else None,
        tags=TAGS[flow],
        description=flow.description,
        schedules=SCHEDULES.get(flow),
        # By name: each host's worker finds it in its own working copy.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    form = with_values(flow.parameters.model_dump(exclude_unset=True), read_values(PARAMS))
    try:
        found = await client.read_deployment_by_name(f"{flow.name}/{name}")
    except ObjectNotFound:
        found = await client.read_deployment(await deployment.aapply())
    if found.parameter_openapi_schema != form:
        await client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=form))


async def _watch_heartbeats(client: PrefectClient) -> None:
    """Runs of a host that vanished: where heartbeats stop, the server itself marks the run as crashed.

    Heartbeats name the deployment of a run: others' runs, which may beat more slowly, are none of our business.
    """
    found = [one for one in await client.read_deployments() if (one.entrypoint or "").startswith(jobs.__name__)]
    ids = sorted(f"prefect.deployment.{one.id}" for one in found)
    ours = {"prefect.resource.role": "deployment", "prefect.resource.id": ids}
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
    for watch in await client.read_automations_by_name(WATCH):
        if getattr(watch.trigger, "match_related", None) != trigger.match_related:
            watched = watch.trigger.model_copy(update={"match_related": trigger.match_related})
            # The server names the owner, and takes none.
            core = watch.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})
            await client.update_automation(watch.id, AutomationCore.model_validate({**core, "trigger": watched}))
        return
    await client.create_automation(AutomationCore(name=WATCH, trigger=trigger, actions=[action]))


if __name__ == "__main__":
    main()
