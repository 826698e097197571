"""The whybox gateway: REST and gRPC over one set of operations, in front of TorchServe. Imports no torch."""
