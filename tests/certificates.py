"""An authority of a test's own, and what it signs, in files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import trustme


class Authority:
    def __init__(self, place: Path) -> None:
        self._place = place
        self._place.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.file = place / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def sign(self, *names: str, not_after: datetime | None = None) -> tuple[Path, Path]:
        """The files of a certificate and its key."""
        signed = self._ca.issue_cert(*names, not_after=not_after)
        stem = names[0].replace("*", "any").replace(":", "-")
        certificate, key = self._place / f"{stem}.pem", self._place / f"{stem}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in signed.cert_chain_pems))
        key.touch(0o600)
        signed.private_key_pem.write_to_path(str(key))
        return certificate, key
