"""The gateway over gRPC: the same operations, the same errors."""
