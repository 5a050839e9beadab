"""Register the model in MLflow, and promote it where the gates pass."""

from prefect import flow

from components.registry.register import register as component
from flows import entry


@flow(name="register")
def register(params: str = "params.yaml") -> str:
    """Register the model in MLflow, and promote it where the gates pass."""
    return str(entry.step(component, params))


if __name__ == "__main__":
    entry.command_line(register, __doc__)
