"""A proxy as a client of its control plane: resources over delta xDS, certificates from the CA."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ca.client import CaClient, CaClientSettings, TokenSource, channel_factory, token_source
from ca.trust_bundle import RootSource
from config.xds.client import DeltaXdsClient, NodeInfo
from dataplane.control.metrics import XDS_BYTES, XDS_MESSAGES, XDS_TERMINATIONS
from dataplane.control.resources import HeldResources
from dataplane.settings import DEFAULT_TOKEN, Endpoint, Identity
from telemetry.metrics import Description, Family, Labels, Number
from transport.grpc.channel import ChannelSettings
from transport.grpc.tls import TlsTrust


class ControlPlane:
    """What the xDS client hands resources to; counts them (facts 11.3)."""

    def __init__(self, resources: HeldResources) -> None:
        self._resources = resources
        self._messages = Family(XDS_MESSAGES)
        self._bytes = Family(XDS_BYTES)
        self._terminations = Family(XDS_TERMINATIONS)

    @property
    def type_urls(self) -> tuple[str, ...]:
        """What is subscribed to, in order."""
        return self._resources.type_urls

    def apply(
        self, type_url: str, upserts: Sequence[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> dict[str, str]:
        self._messages.inc((type_url,))
        self._bytes.inc((type_url,), sum(len(value) for _, _, value in upserts))
        return self._resources.apply(type_url, upserts, removed)

    @property
    def versions(self) -> dict[str, dict[str, str]]:
        """What is held already, restored from disk."""
        return self._resources.versions()

    def on_termination(self, reason: str) -> None:
        self._terminations.inc((reason,))

    def families(self) -> Iterator[tuple[Description, Mapping[Labels, Number]]]:
        for family in (self._terminations, self._messages, self._bytes):
            yield family.description, family.samples()


def _channel_settings(endpoint: Endpoint) -> ChannelSettings:
    """The roots are filled in when a channel is opened: the file may have been renewed."""
    alternatives = (endpoint.alternative_name,) if endpoint.alternative_name else ()
    trust = TlsTrust("", alternative_names=alternatives) if endpoint.is_tls else None
    return ChannelSettings(endpoint.host, endpoint.port, tls=trust)


def token_from(text: str) -> TokenSource | None:
    """`text` is a path or a token; empty: Istio's path where that exists, else none."""
    if text:
        return token_source(text)
    return token_source(DEFAULT_TOKEN) if Path(DEFAULT_TOKEN).exists() else None


def make_ca_client(
    endpoint: Endpoint, token: TokenSource | None, cluster_id: str, secret_ttl_s: float, *, impersonates: bool
) -> CaClient:
    """`impersonates`: asks in the name of others, as a node does for its workloads."""
    roots = RootSource(endpoint.roots) if endpoint.is_tls else None
    return CaClient(
        channel_factory(_channel_settings(endpoint), roots),
        token,
        CaClientSettings(
            cluster_id=cluster_id,
            lifetime=dt.timedelta(seconds=secret_ttl_s),
            is_impersonating=impersonates,
            extra_metadata=endpoint.headers,
        ),
    )


def make_xds_client(
    endpoint: Endpoint, token: TokenSource | None, identity: Identity, handler: ControlPlane
) -> DeltaXdsClient:
    roots = RootSource(endpoint.roots) if endpoint.is_tls else None
    return DeltaXdsClient(
        channel_factory(_channel_settings(endpoint), roots),
        node_info(identity),
        token,
        handler.type_urls,
        handler,
        cluster_id=identity.cluster_id,
        extra_metadata=endpoint.headers,
        known=handler.versions,
    )


def node_info(identity: Identity) -> NodeInfo:
    """Facts 5.3."""
    metadata: dict[str, object] = {
        "NAME": identity.pod_name,
        "NAMESPACE": identity.pod_namespace,
        "INSTANCE_IPS": identity.instance_ip,
        "NODE_NAME": identity.node,
        **identity.metadata,
    }
    return NodeInfo(identity.node_id, metadata)
