"""Servers that this project starts: Prefect's command, and waiting until one answers."""

import os
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import urlopen


def prefect_command(host: str, port: int | str) -> list[str]:
    """What starts Prefect's server."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]


def prefect_environment(address: str) -> dict[str, str]:
    """What Prefect's server at an address is started with: pages of other sites can neither read from it nor have it do
    anything, even in the browser of somebody who may. What the user has set wins.
    """
    protection = {
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
    }
    return {name: os.environ.get(name, value) for name, value in protection.items()}


def prefect_api(address: str) -> str:
    """Where clients of Prefect's server at an address such as http://127.0.0.1:4200 find it."""
    return f"{address}/api"


def prefect_health(address: str) -> str:
    """What answers once Prefect's server is up."""
    return f"{prefect_api(address)}/health"


def answers(url: str) -> bool:
    """Whether a server replies there, if only to ask for a password."""
    try:
        urlopen(url, timeout=2).close()
    except HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False
    return True


def comes_up(process: "subprocess.Popen[bytes]", url: str, seconds: float) -> bool:
    """Wait until a process answers; whether it did, before it ended or the time was over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if answers(url):
            return True
        time.sleep(0.2)
    return False


def stays_up(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether a process that answers nowhere is still there after a while."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False
