"""The gRPC server: the service, standard health and reflection on one port."""

from __future__ import annotations

from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adapters.rpc.guard import Guard
from adapters.rpc.health import Health
from adapters.rpc.pb import pipeline_pb2 as pb
from adapters.rpc.pb import pipeline_pb2_grpc as pb_grpc
from adapters.rpc.service import PipelineService
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

SERVICE = pb.DESCRIPTOR.services_by_name["PipelineService"].full_name

LONG_POLLS = frozenset({f"/{SERVICE}/ClaimStep"})
"""Calls that may wait for minutes, and are ended at the stop as streams are."""

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""gRPC's own default, said aloud. Data is bounded at 1 MiB as JSON; protobuf may need more."""

MAX_CONCURRENT_RPCS = 1_000
"""Each watcher is one. More than any house has services; few enough to bound their memory."""

KEEPALIVE_TIME_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
"""A watcher whose machine has vanished is noticed, and its follower ends, in 40 seconds."""

MIN_PING_INTERVAL_MS = 10_000
"""Watchers may ping this often through a quiet NAT; who pings more is disconnected."""

OPTIONS = (
    # Two servers that share a port would each get half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
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
    ) -> None:
        self._service = PipelineService(
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
        self._guard = Guard(long_polls=LONG_POLLS)

        async def ready() -> None:
            await status.list(Query(limit=1))

        self._health = Health((SERVICE,), ready)
        self._server: aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Serve on ``host``, and answer with the port: for 0 a free one.

        Raises ``Unavailable``, naming the address, if it can't be listened on.
        """
        server = aio.server(
            interceptors=[self._guard],
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        pb_grpc.add_PipelineServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self._service, server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_insecure_port(address)
        except RuntimeError:
            await server.stop(None)
            raise Unavailable(
                f"gRPC can't listen on {address}: another program may be using it"
            ) from None
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """Serve nobody new. Streams and long polls end, other calls have ``grace_s`` to end."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self._health.stop()
        self._guard.end_streams()
        await server.stop(grace_s)
