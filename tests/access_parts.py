"""Files of keys and certificates, for tests of access."""

from __future__ import annotations

from pathlib import Path

import trustme

from whybox_service.keys import Entry


def write_keys(path: Path, *entries: Entry | str) -> Path:
    """Write a file of keys; an entry may be a line that is none."""
    path.write_text("".join(f"{entry}\n" for entry in entries))
    path.chmod(0o600)
    return path


def issue(authority: trustme.CA, folder: Path, *names: str) -> tuple[Path, Path]:
    """Write a certificate with its chain, and its key; for loopback unless there are names."""
    made = authority.issue_cert(*(names or ("127.0.0.1", "localhost")))
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    made.private_key_pem.write_to_path(key)
    return certificate, key
