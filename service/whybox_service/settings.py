"""What an operator can set, read from ``WHYBOX_*`` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1 << 20


class Settings(BaseSettings):
    """The gateway's settings; each is the environment variable ``WHYBOX_`` + its name in capitals."""

    # An empty variable is what compose files make of one that is not set; an error shows no value, since some
    # are secret.
    model_config = SettingsConfigDict(
        env_prefix="WHYBOX_", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    host: str = Field(default="127.0.0.1", description="Address that REST and gRPC listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of REST; 0 takes a free one.")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="Port of gRPC; 0 takes a free one.")
    inference_url: str = Field(default="http://127.0.0.1:8080", description="TorchServe's inference API.")
    management_url: str = Field(default="http://127.0.0.1:8081", description="TorchServe's management API.")
    deadline_seconds: float = Field(
        default=30.0, gt=0, description="Seconds a request may take when its client names no deadline."
    )
    max_deadline_seconds: float = Field(
        default=110.0,
        gt=0,
        description="Most seconds that a client's own deadline may name; longer ones are cut to this. "
        "Keep it under the models' responseTimeout, after which TorchServe kills a worker.",
    )
    poll_seconds: float = Field(
        default=5.0, gt=0, description="Seconds between two looks at the state of TorchServe's workers."
    )
    max_request_bytes: int = Field(
        default=64 * MEBIBYTE, gt=0, description="Bytes of the largest request, on both transports."
    )
    max_response_bytes: int = Field(
        default=64 * MEBIBYTE, gt=0, description="Bytes of the largest answer, counted as protobuf."
    )
    max_requests: int = Field(
        default=256, gt=0, description="Requests in hand at one time, both transports together."
    )
    max_waiting: int = Field(
        default=64,
        ge=0,
        description="Requests of one model that wait for its workers; further ones are refused at once.",
    )
    max_buffered_bytes: int = Field(
        default=512 * MEBIBYTE, gt=0, description="Bytes of all requests' bodies in hand at one time."
    )
    max_sums_bytes: int = Field(
        default=1024 * MEBIBYTE,
        gt=0,
        description="Bytes that adding up the samples of all explanations in hand may take at one time.",
    )
    header_seconds: float = Field(
        default=10.0, gt=0, description="Seconds that a client has for the headers of a REST request."
    )
    body_seconds: float = Field(
        default=20.0,
        gt=0,
        description="Seconds that a client has for the body of a REST request, and to take the answer; "
        "large answers have more.",
    )
    idle_seconds: float = Field(
        default=75.0, gt=0, description="Seconds after which a connection without a request is closed."
    )
    stall_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds after a request's deadline at which a model that has answered nothing since "
        "counts as hung. Longer than the longest forward pass.",
    )
    probe_seconds: float = Field(
        default=5.0,
        gt=0,
        description="Seconds within which a model with nothing to do describes itself, or counts as hung. "
        "With several gateways on one TorchServe: longer than the longest request.",
    )
    recovery_seconds: float = Field(
        default=10.0,
        ge=0,
        description="Seconds that a request whose worker was lost waits for another, to be sent once more.",
    )
    departures_dir: Path | None = Field(
        default=None,
        description="Folder shared with the workers, in which they are told whose client has gone.",
    )
    shutdown_seconds: float = Field(
        default=10.0, ge=0, description="Seconds that running requests get to finish when the gateway stops."
    )
    address_file: Path | None = Field(
        default=None, description="File that gets the addresses, as JSON, once both transports listen."
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with the hashes of the API keys; it is read again when it changes.",
    )
    api_keys: SecretStr | None = Field(
        default=None, description="Hashes of API keys, NAME:sha256:HEX, with commas between them."
    )
    allow_anonymous: bool = Field(
        default=False, description="Listen beyond loopback even where no API key is configured."
    )
    open_metrics: bool = Field(default=False, description="Give the metrics without an API key.")
    tls_certificate: Path | None = Field(
        default=None,
        description="File with the certificate and its chain, PEM: both transports then speak TLS alone.",
    )
    tls_key: Path | None = Field(default=None, description="File with the certificate's private key, PEM.")
    tls_client_ca: Path | None = Field(
        default=None, description="File with CA certificates, PEM; clients then need a certificate of theirs."
    )
    data: Path | None = Field(
        default=None,
        description="Folder for inversion jobs: their database, states and pictures. Without it, and without "
        "a database elsewhere, there are no inversions.",
    )
    jobs_database: SecretStr | None = Field(
        default=None,
        description="URL of a Postgres that several replicas share, postgresql://…; without it jobs are in a "
        "file of the data folder.",
    )
    jobs_artifacts: str | None = Field(
        default=None,
        description="Folder or fsspec URL for states and pictures, one for all replicas on one database.",
    )
    jobs_executor: str = Field(
        default="gateway",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="Name by which a replica knows its jobs again when it comes back; each has its own.",
    )
    jobs_adopt_seconds: float = Field(
        default=600.0,
        ge=0,
        description="Seconds that a replica's name may be nobody's before the other replicas take over the "
        "inversions that it ran; 0: never.",
    )
    jobs_running: int = Field(
        default=1, gt=0, le=64, description="Inversions that each replica runs at one time; the same for all."
    )
    jobs_queued: int = Field(
        default=1000, gt=0, description="Inversions that wait at one time; further ones are refused."
    )
    jobs_step_seconds: float = Field(
        default=1.0,
        gt=0,
        le=30,
        description="Seconds of a step: how long a worker is held, how much is lost with it, and how soon a "
        "cancelled inversion ends.",
    )
    jobs_patience_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Seconds that an inversion waits for a worker that can go on with it, before it fails.",
    )
    jobs_keep_days: float = Field(
        default=30.0, ge=0, description="Days after which an inversion that has ended is forgotten; 0: never."
    )
    jobs_keep_count: int = Field(
        default=10_000, ge=0, description="Inversions that are kept when they have ended, the newest; 0: all."
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines to read (text), or a JSON object a line (json)."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="URL of an OpenTelemetry collector, OTLP over HTTP, that gets traces.",
    )

    def seconds(self, asked: float | None) -> float:
        """Return how long a request may take whose client asked for so many seconds, or for none."""
        return min(self.deadline_seconds if asked is None else asked, self.max_deadline_seconds)
