"""TLS: what a server shows, and what a client trusts.

A certificate and its key are tried on each other before anybody connects, in a handshake
in memory: what can't be served is said at the start, and by name. One that has expired is
served all the same, because cards are copied whoever may look on; it is said loudly.

What is renewed is tried in the same way, and shown to who connects from then on; until it
is good, the old one is.

A client that is told of a server by the lock file trusts exactly the certificate that
stands there: it needs no authority, no name has to fit, and no clock has to be right.
"""

from __future__ import annotations

import logging
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from domain.errors import InvalidInput

log = logging.getLogger("rushes")

WARN_BEFORE_S = 14 * 86_400
"""Time to get another certificate, holidays included."""

LOOK_EVERY_S = 60.0
"""How often it is looked whether the files are others: a renewal has weeks, a mistake is seen."""

CERTIFICATE, KEY = "RUSHES_TLS_CERTIFICATE", "RUSHES_TLS_KEY"

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows. context: for HTTP. chain, key, client_ca: the files, for gRPC.

    own: its certificate alone, as PEM.
    """

    context: ssl.SSLContext
    chain: bytes
    key: bytes
    client_ca: bytes | None
    own: str


def identity(certificate: Path, key: Path, client_ca: Path | None, *, now: float) -> Identity:
    """``now``: in seconds since 1970.

    Raises ``InvalidInput``, naming the setting and the file, for what can't be served. Warns
    of a certificate that expires soon or has, and of a key that anybody can read.
    """
    chain, secret = _read(certificate, CERTIFICATE), _read(key, KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs the server more than who asks for it
    try:
        context.load_cert_chain(certificate, key, password=_nobody_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput(f"{key} is not the key of {certificate}", field=KEY) from None
        wrong, field, what = key, KEY, "key"
        if b"BEGIN CERTIFICATE" not in chain:
            wrong, field, what = certificate, CERTIFICATE, "certificate"
        why = error.reason or f"there is no {what} in it"
        if b"ENCRYPTED" in secret:
            why = "it has a passphrase, and here is nobody to ask"
        raise InvalidInput(f"{wrong} can't be used: {why}", field=field) from None
    authority = None if client_ca is None else _read(client_ca, "RUSHES_TLS_CLIENT_CA")
    if authority is not None:
        _trusting_authority(authority, f"{client_ca}", "RUSHES_TLS_CLIENT_CA")
    own = ssl.DER_cert_to_PEM_cert(handshake(context, _trusting_anybody()).getpeercert(True) or b"")
    try:
        facts = handshake(context, trusting(own)).getpeercert()
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason
        raise InvalidInput(
            f"no client would take {certificate}: {why}", field=CERTIFICATE
        ) from None
    assert facts is not None
    ends = str(facts["notAfter"])
    left_s = ssl.cert_time_to_seconds(ends) - now
    if left_s < WARN_BEFORE_S:
        state = "HAS EXPIRED: no client takes it" if left_s < 0 else "expires soon"
        log.warning("the certificate %s %s (%s)", certificate, state, ends)
    if key.stat().st_mode & stat.S_IROTH:
        log.warning("the key %s can be read by everybody on this machine", key)
    return Identity(context, chain, secret, authority, own)


def stamp(*files: Path | None) -> object:
    """Another one once one of the files is another, or has been written to."""
    found: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            now = None if file is None else file.stat()
        except OSError:
            now = None
        found.append(now and (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))
    return found


def alone(certificate: Path) -> str:
    """A server's certificate without those of its authorities. Raises ``InvalidInput``."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    _, _, rest = _read(certificate, CERTIFICATE).partition(begin)
    body, found, _ = rest.partition(end)
    if not found:
        raise InvalidInput(f"there is no certificate in {certificate}", field=CERTIFICATE)
    return (begin + body + end).decode("ascii", "replace")


def trusting(own: str) -> ssl.SSLContext:
    """For a client: exactly this certificate, whatever it says of names and times."""
    context = _trusting_anybody()
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cadata=own)
    return context


def trusting_authority(path: Path | None) -> ssl.SSLContext:
    """For a client: what this PEM file's authority has signed; without one, the system's.

    Raises ``InvalidInput``, naming the file.
    """
    if path is None:
        return ssl.create_default_context()
    return _trusting_authority(_read(path, "RUSHES_TLS_CA"), f"{path}", "RUSHES_TLS_CA")


def _trusting_authority(pem: bytes, path: str, field: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=pem.decode("ascii", "replace"))
    except ssl.SSLError as error:
        why = error.reason or "there is no certificate in it"
        raise InvalidInput(f"{path} can't be used: {why}", field=field) from None


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", field=field) from None


def _nobody_to_ask() -> str:
    """Else OpenSSL would ask at the terminal."""
    return ""


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None
) -> ssl.SSLObject:
    """The client's end of one that never leaves this memory. Raises ``SSLError``."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    done = False
    while not done:
        done = True
        for end in (ours, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                done = False
    return ours
