"""A provider of external authorization to what waypoints need in order to ask it. Pure."""

from __future__ import annotations

from config.compile.messages import duration
from config.extension_providers import CheckBody, GrpcAuthorizer, HttpAuthorizer
from proto.mycelia import authorization_l7_pb2 as pb


def compile_authorizer(config: HttpAuthorizer | GrpcAuthorizer, service: str) -> pb.ExternalAuthorizer:
    """`service` is the resource name of the service that was found for it."""
    message = pb.ExternalAuthorizer(
        service=service,
        port=config.service.port,
        timeout=duration(config.timeout_ms),
        fails_open=config.fails_open,
        error_status=config.error_status,
        clears_route=config.clears_route,
        body=_body(config.body),
        is_grpc=isinstance(config, GrpcAuthorizer),
    )
    if isinstance(config, HttpAuthorizer):
        message.path_prefix = config.path_prefix
        message.request_headers.extend(config.request_headers)
        message.additional_headers.extend(
            pb.HeaderLine(name=name, value=value) for name, value in config.additional_headers
        )
        message.upstream_headers.extend(config.upstream_headers)
        message.deny_headers.extend(config.deny_headers)
        message.allow_headers.extend(config.allow_headers)
    return message


def _body(body: CheckBody | None) -> pb.CheckBody | None:
    if body is None:
        return None
    return pb.CheckBody(max_bytes=body.max_bytes, may_be_partial=body.may_be_partial, as_bytes=body.as_bytes)
