"""The gRPC server: the service, standard health and reflection on one port."""

from __future__ import annotations

import asyncio
from collections import deque

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from adapters.audit import Audit
from adapters.limits import Rates, Shares
from adapters.rpc.access import SERVICE
from adapters.rpc.calls import Calls
from adapters.rpc.health import Health
from adapters.rpc.patience import Patience
from adapters.rpc.pb import pipeline_pb2_grpc as pb_grpc
from adapters.rpc.service import PipelineService
from adapters.tls import Identity
from application.access import Access
from application.advance import Advance
from application.cancel import Cancel
from application.claims import Claims
from application.feed import Feed
from application.hold import Hold
from application.pause import Pause
from application.ports import Dispatcher, Query
from application.rerun import Rerun
from application.retry import Retry
from application.settle import Settle
from application.status import Status
from application.trigger import Trigger
from domain.errors import Unavailable

LONG_POLLS = frozenset({f"/{SERVICE}/ClaimStep"})
"""Calls that may wait for minutes, and are ended at the stop as streams are."""

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""gRPC's own default, said aloud. Data is bounded at 1 MiB as JSON; protobuf may need more."""

MAX_CONCURRENT_RPCS = 4_000
"""Each watcher is one. Four times the crowd that waits for its message in vain; few
enough to bound their memory."""

KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
"""A watcher whose machine has vanished is noticed, and its follower ends, in 40 seconds."""

MIN_PING_INTERVAL_MS = 10_000
"""Watchers may ping this often through a quiet NAT; who pings more is disconnected."""

HANDSHAKE_TIMEOUT_MS = 10_000
"""For TLS and the first settings: who only connects is let go."""

MAX_IDLE_MS = 60_000
"""A connection without a call; a client makes another one when it has something to ask."""

MAX_CONNECTIONS = 2_000
"""A service has one or a few. Each costs a file descriptor and some 20 KB."""

MAX_STREAMS = 1_000
"""Calls at once on one connection: watchers and long polls; the rest wait at the client. Not
on a new connection: what a client sends before it has been told the number is refused."""

MAX_PENDING = 8_000
"""Calls that gRPC holds until the event loop takes them. Beyond these it drops some by chance,
anybody's, and its own 1,000 are soon made by one client that opens streams and takes them back.
Each costs 14 KB meanwhile."""

MAX_METADATA_BYTES = 16 * 1024
"""As much as HTTP takes of headers."""

OPTIONS = (
    # Two servers that share a port would each get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
)


def _shown(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.client_ca
    )


class RpcServer:
    """Lives on the event loop that starts it, once."""

    def __init__(
        self,
        *,
        trigger: Trigger,
        status: Status,
        retry: Retry,
        cancel: Cancel,
        pause: Pause,
        settle: Settle,
        rerun: Rerun,
        hold: Hold,
        dispatcher: Dispatcher,
        advance: Advance,
        claims: Claims,
        feed: Feed,
        access: Access,
        audit: Audit,
        rates: Rates,
    ) -> None:
        service = PipelineService(
            trigger=trigger,
            status=status,
            retry=retry,
            cancel=cancel,
            pause=pause,
            settle=settle,
            rerun=rerun,
            hold=hold,
            dispatcher=dispatcher,
            advance=advance,
            claims=claims,
            feed=feed,
        )

        async def ready() -> None:
            await status.list(Query(limit=1))

        self._health = Health((SERVICE,), ready)
        self._patience = Patience()
        self._calls = Calls(
            access=access,
            audit=audit,
            rates=rates,
            shares=Shares(MAX_CONCURRENT_RPCS),
            patience=self._patience,
            long_polls=LONG_POLLS,
        )
        pb_grpc.add_PipelineServiceServicer_to_server(  # type: ignore[no-untyped-call]
            service, self._calls
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._calls)
        reflected = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(service_names=reflected), self._calls
        )
        self._server: aio.Server | None = None
        self._credentials: grpc.ServerCredentials | None = None  # gRPC doesn't keep them
        self._renewed: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self._looking: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, identity: Identity | None = None) -> int:
        """Serve on ``host``, and answer with the port: for 0 a free one.

        ``identity``: what is shown in TLS, the only way in then.

        Raises ``Unavailable``, naming the address, if it can't be listened on.
        """
        server = aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
        server.add_generic_rpc_handlers((self._calls,))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if identity is None:
                bound = server.add_insecure_port(address)
            else:
                self._credentials = grpc.dynamic_ssl_server_credentials(
                    _shown(identity),
                    self._look_for_another,  # type: ignore[arg-type]  # it may answer None
                    require_client_authentication=identity.client_ca is not None,
                )
                bound = server.add_secure_port(address, self._credentials)
        except RuntimeError:
            await server.stop(None)
            raise Unavailable(
                f"gRPC can't listen on {address}: another program may be using it"
            ) from None
        await server.start()
        self._looking = asyncio.create_task(self._patience.run())
        self._server = server
        return bound

    def show(self, identity: Identity) -> None:
        """To whoever connects from now on."""
        self._renewed.append(_shown(identity))

    def _look_for_another(self) -> grpc.ServerCertificateConfiguration | None:
        """What is shown from now on; None: the same. gRPC asks at each connection, on a thread
        of its own."""
        try:
            return self._renewed.pop()
        except IndexError:
            return None

    async def stop(self, grace_s: float) -> None:
        """Serve nobody new. Streams and long polls end, other calls have ``grace_s`` to end."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._health.stop()
        self._calls.end_streams()
        await server.stop(grace_s)
        if self._looking is not None:
            self._looking.cancel()
