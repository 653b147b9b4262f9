# The gateway. Any Debian-like base with Python 3.11 to 3.13 will do; Python is installed where it is missing.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv)
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY fs_runtime fs_runtime
COPY server server
# TORCH picks the build: this one brings CUDA; "torch==2.13.0+cpu" does not, from an index that has it.
ARG TORCH=torch==2.13.0
ARG EXTRAS=""
RUN python3 -m venv /opt/fs-serve \
    && /opt/fs-serve/bin/pip install --no-cache-dir "${TORCH}" \
    && /opt/fs-serve/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"

FROM ${BASE_IMAGE}
RUN python3 -c 'import ssl' 2>/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 ca-certificates \
        && rm -rf /var/lib/apt/lists/*)
RUN useradd --system --uid 10001 --create-home --home-dir /home/fs-serve fs-serve
COPY --from=build /opt/fs-serve /opt/fs-serve
USER 10001
WORKDIR /home/fs-serve
ENV PATH=/opt/fs-serve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FS_HOST=0.0.0.0 \
    FS_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['FS_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["fs-serve"]
CMD ["serve"]
