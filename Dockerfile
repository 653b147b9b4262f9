# The gateway. By default with CUDA, for a GPU node; docker-compose.cpu.yml builds it without where an index is named.
# Any Debian-like base with Python 3.11 to 3.13 will do; Python is installed where it is missing. Add @sha256:… to pin
# the base to the byte.
ARG BASE_IMAGE=python:3.12.12-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv)
WORKDIR /dependencies
# This build of torch brings CUDA; "torch==2.13.0+cpu" does not, from an index that has it (TORCH_INDEX_URL).
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=""
COPY constraints.txt ./
RUN python3 -m venv /opt/fs-serve \
    && /opt/fs-serve/bin/pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} "${TORCH}"
# gpu reads the GPU's memory; redis shares limits and smoothed images between replicas; tracing sends OpenTelemetry
# spans where it is told to.
ARG EXTRAS="[gpu,redis,tracing]"
# All that the product depends on, by installing it with nothing in it.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir fs_runtime server \
    && echo '__version__ = "0"' > fs_runtime/__init__.py \
    && touch server/__init__.py \
    && /opt/fs-serve/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}" \
    && /opt/fs-serve/bin/pip uninstall --yes --quiet fs-serve pip

FROM dependencies AS product
WORKDIR /product
COPY pyproject.toml README.md LICENSE ./
COPY fs_runtime fs_runtime
COPY server server
RUN /opt/fs-serve/bin/python3 -m ensurepip \
    && /opt/fs-serve/bin/python3 -m pip install --no-cache-dir --no-deps --prefix /installed .

FROM ${BASE_IMAGE}
RUN (python3 -c 'import ssl' && test -e /etc/ssl/certs/ca-certificates.crt) 2>/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 ca-certificates \
        && rm -rf /var/lib/apt/lists/*)
# What the setting compile needs, for one: PACKAGES=g++, and python3-dev where Python is Debian's.
ARG PACKAGES=""
RUN test -z "${PACKAGES}" \
    || (apt-get update && apt-get install --yes --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*)
# The folders of weights and audit log are made here: a new volume takes the owner of what it is mounted on.
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/fs-serve fs-serve \
    && install --directory --owner fs-serve --group fs-serve \
        /home/fs-serve/.cache /home/fs-serve/.cache/huggingface /home/fs-serve/audit
# A changed line of code is a layer of megabytes; the gigabytes below it stay as they are.
COPY --from=dependencies /opt/fs-serve /opt/fs-serve
COPY --from=product /installed /opt/fs-serve
USER 10001:10001
WORKDIR /home/fs-serve
# Nothing but /tmp, the cache of weights and the audit log is written, so that the root file system may be read-only.
ENV PATH=/opt/fs-serve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    FS_HOST=0.0.0.0 \
    FS_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['FS_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["fs-serve"]
CMD ["serve"]
