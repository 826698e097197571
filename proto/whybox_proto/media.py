"""Media types that both sides of a hop name."""

PROTOBUF = "application/x-protobuf"
