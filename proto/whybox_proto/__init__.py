"""The contract: messages (`v1/`), the table of errors, the checks, and the encoding of heat maps.

What a client sends, what the gateway checks and what a TorchServe worker decodes are the same
messages. Everything that two of the three must agree on lives here, once.
"""
