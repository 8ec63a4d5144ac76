"""The settings: flags beat the environment, that beats the file, that beats the defaults.

The file is ``rushes.toml`` in the system's configuration folder, or the one that is
named, never one in the current folder: that may be a card.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from domain.errors import InvalidInput
from domain.footage import HASH_NAMES
from domain.places import DEFAULT_LAYOUT, Template

DEFAULT_POOLS = {"default": 32, "card": 4, "copy": 2}
"""Ordinary steps mostly wait; scans and copies compete for readers and disks."""


MAX_DESTINATIONS = 3
"""Beside the library. Each holds a batch of files open, and has threads and buffers."""

DEFAULT_RATE = 500
"""Requests a second from one address. A busy frontend asks for ten, a house of workers for 100."""

DEFAULT_CONNECTIONS = 4_000
"""Of HTTP at once, each with some 40 KB: many times the frontends that a house has."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field ``x`` is ``RUSHES_X`` in the environment and ``x`` in the file.

    host, port, grpc_port: where to listen; 0 picks a free port.
    database_url: the SQLite database. library: where footage goes.
    destinations: further folders where all of it goes as well.
    hashes: what footage is hashed by while it is read; by the first copies are compared.
    verify_source: whether every file is read from the card a second time.
    layout: the folders that footage goes into, below the library and the destinations.
    card_roots: folders strictly below which cards are mounted.
    card_pipeline: the pipeline that an inserted card starts.
    pipelines: further pipelines, each as ``module:attribute``.
    clip_steps: what ``sd_ingest`` does with each clip, each step as ``module:attribute``.
    pools: how many steps may run at once in each pool.
    origins: web pages elsewhere (``http://localhost:5173``) that may use the server.
    hosts: further names by which clients call this server.
    tls_certificate, tls_key: PEM files; with them HTTP and gRPC are served over TLS alone.
    tls_client_ca: PEM file of the authority whose certificates gRPC clients must show.
    tls_ca: PEM file of the authority that a client trusts, instead of the system's.
    insecure: whether other machines may be served without TLS.
    rate: requests a second from one address, once there are tokens; 0: any number.
    connections: of HTTP at once.
    stop_grace_s: how long running handlers have to come to an end when Rushes stops.
    abandon_after_s: how long a handler keeps its slot that doesn't end when it is told to.
    keep_days: how long an execution is kept after its last change; 0: for ever.
    token: what a client shows to be let in; empty: nothing.
    server: whom a detector tells of cards, as a URL; empty: the one at host and port.
    watch: whether the server watches for cards itself.
    watch_roots: folders strictly below which a detector takes every mount for a card.
    verify_roots: folders at or below which footage may be verified and repaired, beside the
        library; what lies below the card roots may be verified, and is never written to.
    """

    host: str
    port: int
    grpc_port: int
    database_url: str
    library: Path
    destinations: tuple[str, ...]
    hashes: tuple[str, ...]
    verify_source: bool
    layout: str
    card_roots: tuple[str, ...]
    card_pipeline: str
    pipelines: tuple[str, ...]
    clip_steps: tuple[str, ...]
    pools: Mapping[str, int]
    origins: tuple[str, ...]
    hosts: tuple[str, ...]
    tls_certificate: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    tls_ca: Path | None
    insecure: bool
    rate: int
    connections: int
    stop_grace_s: float
    abandon_after_s: float
    keep_days: float
    token: str = field(repr=False)
    server: str
    watch: bool
    watch_roots: tuple[str, ...]
    verify_roots: tuple[str, ...]

    @classmethod
    def load(
        cls,
        flags: Mapping[str, str | None],
        environment: Mapping[str, str],
        config: Path | None = None,
    ) -> Settings:
        """Raises ``InvalidInput``, naming the setting and where it came from."""
        file = _read_file(config)
        values: dict[str, Any] = {}
        for name in (each.name for each in fields(cls)):
            variable = f"RUSHES_{name.upper()}"
            if flags.get(name) is not None:
                source, raw = f"--{name.replace('_', '-')}", flags[name]
            elif environment.get(variable):
                source, raw = variable, environment[variable]
            elif name in file:
                source, raw = f"{name} in the settings file", _from_file(file[name])
            else:
                source, raw = f"the default of {variable}", _default(name)
            assert raw is not None
            try:
                values[name] = _PARSERS[name](raw)
            except ValueError as error:
                raise InvalidInput(f"{source}: {error}", field=variable) from None
        if (values["tls_certificate"] is None) != (values["tls_key"] is None):
            missing = "RUSHES_TLS_" + ("KEY" if values["tls_key"] is None else "CERTIFICATE")
            raise InvalidInput(
                f"{missing} is missing: a certificate and its key go together", field=missing
            )
        if values["tls_client_ca"] is not None and values["tls_certificate"] is None:
            raise InvalidInput(
                "RUSHES_TLS_CLIENT_CA asks clients for certificates, and without "
                "RUSHES_TLS_CERTIFICATE there is no TLS to show them in",
                field="RUSHES_TLS_CLIENT_CA",
            )
        return cls(**values)

    @property
    def beyond_loopback(self) -> bool:
        """Whether other machines can reach what listens at ``host``."""
        return not ipaddress.ip_address(self.host).is_loopback

    @property
    def near_host(self) -> str:
        """Where a client on this machine finds what listens at ``host``."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104


def address(host: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_file(named: Path | None) -> Mapping[str, Any]:
    path = named or platformdirs.user_config_path("rushes") / "rushes.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if named is None:
            return {}
        raise InvalidInput(f"there is no settings file {path}", field="--config") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"the settings file {path} can't be read: {error}", field="--config"
        ) from None
    known = {each.name for each in fields(Settings)}
    for name in content:
        if name not in known:
            raise InvalidInput(
                f"the settings file {path} has {name!r}, which is no setting "
                f"(there are: {', '.join(sorted(known))})",
                field="--config",
            )
    return content


def _from_file(value: Any) -> str:
    """As it would stand in the environment."""
    if isinstance(value, list):
        separator = os.pathsep if value and str(value[0]).startswith("/") else ","
        return separator.join(str(each) for each in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return str(value)


def _default(name: str) -> str:
    match name:
        case "host":
            return "127.0.0.1"
        case "port":
            return "8000"
        case "grpc_port":
            return "50051"
        case "database_url":
            return f"sqlite:///{platformdirs.user_data_path('rushes') / 'rushes.db'}"
        case "library":
            return str(platformdirs.user_videos_path() / "Rushes")
        case "card_roots":
            return "/Volumes" if sys.platform == "darwin" else "/media:/run/media:/mnt"
        case "stop_grace_s":
            return "10"
        case "abandon_after_s":
            return "300"
        case "keep_days":
            return "90"
        case "card_pipeline":
            return "sd_ingest"
        case "hashes":
            return "xxh64"
        case "layout":
            return DEFAULT_LAYOUT
        case "rate":
            return str(DEFAULT_RATE)
        case "connections":
            return str(DEFAULT_CONNECTIONS)
        case _:
            return ""


def _host(text: str) -> str:
    """An address of this machine. Who may be let in from elsewhere is said at ``serve``."""
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is no address: 127.0.0.1 or ::1 for this machine alone, 0.0.0.0 or :: "
            "for all that reach it, or one of its own"
        ) from None


def _hosts(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for name in names:
        try:
            alone = urlsplit(f"//{name}").hostname == name.strip("[]")
        except ValueError:
            alone = False
        if not alone or "*" in name or not name.isascii():
            raise ValueError(f"{name!r} must be a name alone, such as rushes.studio.lan")
    return tuple(name.strip("[]") for name in names)


def _file(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"{text!r} must be an absolute path")
    return path


def _count(text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    raise ValueError(f"{text!r} is no whole number from {least} to {most}")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise ValueError(f"{text!r} is no port (0 to 65535)")


def _library(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"{text!r} must be an absolute path")
    _require_text(text)
    return path


def _require_text(folder: str) -> None:
    """Where footage goes is stored as text. Raises ``ValueError``."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{folder!a} must be valid UTF-8") from None


def _card_roots(text: str) -> tuple[str, ...]:
    roots = _folders(text)
    if not roots:
        raise ValueError("at least one folder is needed, or no card can ever be announced")
    return roots


def _folders(text: str) -> tuple[str, ...]:
    folders = tuple(os.path.normpath(part) for part in text.split(os.pathsep) if part)
    for folder in folders:
        if not os.path.isabs(folder):
            raise ValueError(f"{folder!r} must be an absolute path")
    return folders


def _destinations(text: str) -> tuple[str, ...]:
    folders = _folders(text)
    if len(set(folders)) > MAX_DESTINATIONS:
        raise ValueError(f"{len(set(folders))} folders are more than {MAX_DESTINATIONS}")
    for folder in folders:
        _require_text(folder)
    return tuple(dict.fromkeys(folders))


def _hashes(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in HASH_NAMES:
            raise ValueError(f"{name!r} is no hash (there are: {', '.join(HASH_NAMES)})")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{text!r} must name at least one hash, and each once")
    return names


def _layout(text: str) -> str:
    Template.parse(text)
    return text


def _server(text: str) -> str:
    """The address of its WebSocket."""
    if not text:
        return ""
    parts = urlsplit(text)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    place = parts.path.rstrip("/")
    here = parts.hostname and parts.port != 0
    if scheme is None or not here or place not in ("", "/ws") or parts.query:
        raise ValueError(f"{text!r} must look like http://127.0.0.1:8000")
    return f"{scheme}://{parts.netloc}/ws"


def _token(text: str) -> str:
    """It goes into a header, and never into what is said of it."""
    token = text.strip()
    if not all("!" <= c <= "~" for c in token):
        raise ValueError("it is no token: those have no spaces, and only ASCII in them")
    return token


def _yes_or_no(text: str) -> bool:
    if text.lower() in ("yes", "true", "on", "1"):
        return True
    if text.lower() in ("no", "false", "off", "0", ""):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def _named(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        module, _, attribute = name.partition(":")
        if not module or not attribute:
            raise ValueError(f"{name!r} must look like module:attribute")
    return names


def _pools(text: str) -> Mapping[str, int]:
    pools = dict(DEFAULT_POOLS)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = part.partition("=")
        if not name or not size.isdigit() or not 0 < int(size) <= 1_000:
            raise ValueError(f"{part!r} must look like name=4 (1 to 1000 steps at once)")
        pools[name] = int(size)
    return pools


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
            raise ValueError(f"{origin!r} must look like http://localhost:5173")
    return origins


def _seconds(text: str, least: float = 0.0) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= 3_600:
        raise ValueError(f"{text!r} is no number of seconds from {least:g} to 3600")
    return seconds


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36_500:
        raise ValueError(f"{text!r} is no number of days from 0 (for ever) to 36500")
    return days


def _word(text: str) -> str:
    return text


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "host": _host,
    "port": _port,
    "grpc_port": _port,
    "database_url": _word,
    "library": _library,
    "destinations": _destinations,
    "hashes": _hashes,
    "verify_source": _yes_or_no,
    "layout": _layout,
    "card_roots": _card_roots,
    "card_pipeline": _word,
    "pipelines": _named,
    "clip_steps": _named,
    "pools": _pools,
    "origins": _origins,
    "hosts": _hosts,
    "tls_certificate": _file,
    "tls_key": _file,
    "tls_client_ca": _file,
    "tls_ca": _file,
    "insecure": _yes_or_no,
    "rate": partial(_count, least=0, most=1_000_000),
    "connections": partial(_count, least=10, most=100_000),
    "stop_grace_s": _seconds,
    "abandon_after_s": partial(_seconds, least=0.1),
    "keep_days": _days,
    "token": _token,
    "server": _server,
    "watch": _yes_or_no,
    "watch_roots": _folders,
    "verify_roots": _folders,
}
