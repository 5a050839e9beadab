"""A real Prefect server: what is registered, what a second `make up` leaves alone, and whom the server answers."""

import asyncio
import datetime
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from docker.types import HostConfig
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseJobConfiguration
from ruamel.yaml import YAML

import flows
from flows.deployments import WATCH, register_containers
from flows.pools import Containers, create_containers
from flows.reproduce import SERVER_START_S, _free_port
from flows.servers import comes_up, prefect_api, prefect_command, prefect_environment, prefect_health
from invfusion.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

Ask = Callable[[Callable[[PrefectClient], Awaitable[Any]]], Any]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with our deployments."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    home = {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
    with subprocess.Popen(
        prefect_command("127.0.0.1", port), env={**home, **prefect_environment(address)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            assert comes_up(server, prefect_health(address), SERVER_START_S)
            register(address)
            yield address
        finally:
            server.terminate()


def register(address: str) -> None:
    environment = {**os.environ, "PREFECT_API_URL": prefect_api(address), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.deployments"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def ask(address: str) -> Ask:
    def of(question: Callable[[PrefectClient], Awaitable[Any]]) -> Any:
        async def answer() -> Any:
            async with PrefectClient(prefect_api(address)) as client:
                return await question(client)

        return asyncio.run(answer())

    return of


def test_a_second_registration_changes_nothing_that_somebody_set(address: str, ask: Ask) -> None:
    async def choose(client: PrefectClient) -> None:
        found = await client.read_deployment_by_name("reproduce/gpu")
        await client.update_deployment(
            found.id, DeploymentUpdate(tags=["mine"], parameters={"force": True}, description="ours", paused=True)
        )
        weekly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 1 * * 0"), active=True)
        await client.create_deployment_schedules(found.id, [(weekly.schedule, weekly.active)])
        pool = await client.read_work_pool("gpu")
        template = pool.base_job_template
        template["variables"]["properties"]["env"]["default"] = {"A": "1"}
        await client.update_work_pool(
            "gpu", WorkPoolUpdate(base_job_template=template, is_paused=True, concurrency_limit=3)
        )
        (watch,) = await client.read_automations_by_name(WATCH)
        await client.pause_automation(watch.id)
        # As older code left it: forms belong to the code.
        evaluation = await client.read_deployment_by_name("evaluate/gpu")
        await client.update_deployment(
            evaluation.id, DeploymentUpdate(parameter_openapi_schema={"type": "object"}, tags=["x"])
        )

    async def state(client: PrefectClient) -> Any:
        deployment = await client.read_deployment_by_name("reproduce/gpu")
        pool, (watch,) = await client.read_work_pool("gpu"), await client.read_automations_by_name(WATCH)
        volatile = {"status", "last_polled", "updated"}
        return [kept.model_dump(mode="json", exclude=volatile) for kept in (deployment, pool, watch)]

    form = ask(lambda client: client.read_deployment_by_name("evaluate/gpu")).parameter_openapi_schema
    ask(choose)
    before = ask(state)
    assert (before[0]["paused"], before[0]["tags"], len(before[0]["schedules"])) == (True, ["mine"], 2)
    register(address)
    assert ask(state) == before
    evaluation = ask(lambda client: client.read_deployment_by_name("evaluate/gpu"))
    assert (evaluation.parameter_openapi_schema, evaluation.tags) == (form, ["x"])


def test_only_silent_runs_of_our_own_are_taken_for_dead(ask: Ask) -> None:
    (watch,) = ask(lambda client: client.read_automations_by_name(WATCH))
    trigger = EventTrigger.model_validate(watch.trigger.model_dump())
    ours = ask(lambda client: client.read_deployment_by_name("train/gpu")).id
    assert trigger.covers(heartbeat(ours))
    assert not trigger.covers(heartbeat(uuid4()))  # another team's
    assert not trigger.covers(heartbeat(None))  # of a command line
    assert trigger.expects("prefect.flow-run.Suspended")


def heartbeat(deployment: Any) -> ReceivedEvent:
    run = f"prefect.flow-run.{uuid4()}"
    role = {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{deployment}"}
    return ReceivedEvent(
        id=uuid4(), event="prefect.flow-run.heartbeat", resource={"prefect.resource.id": run},
        related=[role] if deployment else [], occurred=datetime.datetime.now(datetime.UTC),
    )  # fmt: skip


def test_heartbeats_are_set_wherever_flows_start() -> None:
    setting = "prefect.settings.get_current_settings().flows.heartbeat_frequency"
    code = f"import flows.step, prefect.settings; print({setting})"
    clean = {name: value for name, value in os.environ.items() if name not in flows.ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "30"


def test_a_web_page_of_another_site_can_have_nothing_done(address: str) -> None:
    elsewhere = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{address}/api/deployments/filter", b"{}", elsewhere))
    assert refused.value.code == 403
    with urlopen(Request(f"{address}/api/health", headers=elsewhere)) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") is None
    with urlopen(Request(f"{address}/api/health", headers={"Origin": address})) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == address


STORES = {"INVFUSION_REMOTE": "s3://bucket/dvc", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}


class Job(BaseJobConfiguration):
    """What a worker makes of a pool's template, as far as a container depends on it."""

    job_manifest: dict[str, Any] | None = None
    container_create_kwargs: dict[str, Any] | None = None
    volumes: list[str] | None = None


def job(ask: Ask, pool: Containers, **variables: Any) -> Job:
    """A job of a pool."""

    async def made(client: PrefectClient) -> Job:
        await create_containers(client, pool)
        template = (await client.read_work_pool(pool.kind)).base_job_template
        return await Job.from_template_and_values(template, variables, client=client)

    return ask(made)


def test_jobs_in_kubernetes(ask: Ask) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    pool = Containers("kubernetes", "registry/invfusion:1", 1, STORES)
    made = job(ask, pool, gpus=4, name="train")
    manifest = made.job_manifest
    manifest["spec"]["template"]["spec"]["containers"][0] |= {"args": made.command.split(), "env": []}
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["image"] == "registry/invfusion:1"
    assert made.env == STORES
    for document in YAML(typ="safe").load_all((ROOT / "deploy/kubernetes.yaml").read_text()):
        kubernetes_validate.validate(document, "1.31", strict=True)
    # A new image takes the place of the old one; what somebody set stays.
    again = job(ask, replace(pool, image="registry/invfusion:2"), state_claim="mine").job_manifest
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/invfusion:2"
    assert again["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}


def test_jobs_in_docker(ask: Ask) -> None:
    pool = Containers("docker", "invfusion:cuda", 1, STORES)
    made = job(ask, pool, gpus=2)
    (host,) = HostConfig("1.44", **made.container_create_kwargs)["DeviceRequests"]
    assert (host["Count"], host["Capabilities"]) == (2, [["gpu"]])
    assert "invfusion-state:/project/state" in made.volumes
    template = {"job_configuration": {}, "variables": {"properties": {"env": {}, "image": {}}}}
    assert replace(pool, gpus=0).template(template)["job_configuration"]["container_create_kwargs"] == {
        "shm_size": "4g"
    }
    with pytest.raises(ConfigError, match="set INVFUSION_REMOTE and MLFLOW_TRACKING_URI"):
        replace(pool, environment={}).told()


def test_jobs_in_containers_are_watched_and_what_goes_to_the_registry_is_served_first(address: str, ask: Ask) -> None:
    async def queued(client: PrefectClient) -> Any:
        for name in ("report", "register"):
            await client.create_flow_run_from_deployment((await client.read_deployment_by_name(f"{name}/docker")).id)
        waiting = await client.get_scheduled_flow_runs_for_work_pool("docker")
        flows = [(await client.read_flow(run.flow_run.flow_id)).name for run in waiting]
        return flows, [queue.name for queue in await client.read_work_queues(work_pool_name="gpu")]

    with temporary_settings({PREFECT_API_URL: prefect_api(address)}):
        asyncio.run(register_containers(Containers("docker", "invfusion", 0, STORES)))
    assert ask(queued) == (["register", "report"], ["registry", "default"])
    (watch,) = ask(lambda client: client.read_automations_by_name(WATCH))
    trigger = EventTrigger.model_validate(watch.trigger.model_dump())
    for name in ("train/gpu", "train/docker", "promote/gpu"):
        assert trigger.covers(heartbeat(ask(lambda client, name=name: client.read_deployment_by_name(name)).id))


def test_promotions_do_not_wait_behind_trainings(ask: Ask) -> None:
    async def pools(client: PrefectClient) -> Any:
        return [
            (await client.read_deployment_by_name(f"{name}/gpu")).work_pool_name
            for name in ("train", "promote", "rollback")
        ]

    assert ask(pools) == ["gpu", "registry", "registry"]
