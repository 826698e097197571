"""The gateway over HTTP: the contract's messages as JSON or protobuf, errors as problem+json."""
