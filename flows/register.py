"""Register the model in MLflow, and promote it where the gates pass."""

import argparse

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402


@flow(name="register")
def register(params: str = "params.yaml") -> str:
    """Register the model in MLflow, and promote it where the gates pass."""
    from components.register import register as step
    from invfusion.config import load_params

    return str(step(load_params(params)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: register(params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
