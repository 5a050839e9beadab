# The project at its present commit, with its environment:
#   docker build -t invfusion .
#   docker build -t invfusion:cuda --build-arg DEVICE=cuda .
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN apt-get update && apt-get install -y --no-install-recommends git python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /project
ENV PATH=/opt/venv/bin:$PATH

# The index's own build for Linux brings CUDA along; the one for CPUs is a tenth of its size.
ARG DEVICE=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md ./
RUN python3 -m venv /opt/venv \
    && if [ "$DEVICE" = cpu ]; then export PIP_EXTRA_INDEX_URL="$CPU_INDEX"; fi \
    && pip install --no-cache-dir -c constraints.txt setuptools wheel '.[pipeline,servers,containers]'

# Jobs work in git worktrees of it.
COPY . .
RUN git rev-parse HEAD || { echo "build from a clone: .git must be a folder with a commit"; exit 1; }
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && git config --system --add safe.directory /project \
    && useradd --uid 1000 --create-home invfusion \
    && mkdir -p state .dvc/cache /leases \
    && chown -R invfusion /project /leases
USER invfusion

# Nothing but volumes outlives a container: a job hands its results to the DVC remote and to MLflow's server, or fails.
ENV INVFUSION_PUSH=1 INVFUSION_LEASES=/leases
VOLUME /project/state /project/.dvc/cache
ENTRYPOINT ["python", "-m", "flows.container"]
CMD ["python", "-m", "flows.reproduce"]
