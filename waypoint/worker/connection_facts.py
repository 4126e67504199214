"""A connection that is no HTTP, as expressions of the Telemetry kind see it (telemetry/cel_attributes.py)."""

from __future__ import annotations

from waypoint.worker.plan import Source, TcpOutcome


class ConnectionFacts:
    """Implements cel.Facts: it has no request and no response."""

    __slots__ = ("_outcome", "_source")

    def __init__(self, source: Source, outcome: TcpOutcome) -> None:
        self._source = source
        self._outcome = outcome

    def attribute(self, path: str) -> str | int | bool | None:
        root, _, name = path.partition(".")
        match root:
            case "source" | "destination" | "connection":
                return self._of_the_ends(path)
            case "upstream":
                return self._of_upstream(name)
            case "xds":
                outcome = self._outcome
                return (outcome.route_name if name == "route_name" else outcome.cluster) or None
            case _:
                return None

    def header(self, path: str, name: str) -> str | None:  # noqa: ARG002 - the seam's
        return None

    def _of_the_ends(self, path: str) -> str | int | bool | None:
        source, service = self._source, self._outcome.service
        identity = source.identity
        match path:
            case "source.address":
                return source.address[0]
            case "source.port":
                return source.address[1]
            case "source.principal" | "connection.uri_san_peer_certificate":
                return None if identity is None else str(identity)
            case "connection.mtls":
                return identity is not None
            case "destination.address":
                return source.destination[0]
            case "destination.port":
                return source.destination[1]
            case "destination.service":
                return None if service is None else service.hostname
            case "destination.namespace":
                return None if service is None else service.namespace
            case _:
                return None

    def _of_upstream(self, name: str) -> str | int | None:
        outcome = self._outcome
        if name == "transport_failure_reason":
            return None if outcome.error is None else outcome.error.text
        if outcome.upstream is None or name not in ("address", "port"):
            return None
        return outcome.upstream.address[0 if name == "address" else 1]
