"""What an operator can set, read from ``WHYBOX_*`` environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1 << 20


class Settings(BaseSettings):
    """The gateway's settings; each is the environment variable ``WHYBOX_`` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="WHYBOX_", frozen=True)

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
    max_backend_connections: int = Field(
        default=64, gt=0, description="Connections to TorchServe that are open at one time."
    )
    shutdown_seconds: float = Field(
        default=10.0, ge=0, description="Seconds that running requests get to finish when the gateway stops."
    )
    address_file: Path | None = Field(
        default=None, description="File that gets the addresses, as JSON, once both transports listen."
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")

    def seconds(self, asked: float | None) -> float:
        """Return how long a request may take whose client asked for so many seconds, or for none."""
        return min(self.deadline_seconds if asked is None else asked, self.max_deadline_seconds)
