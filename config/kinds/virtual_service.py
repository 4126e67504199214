"""VirtualService (networking.istio.io), with the checks that Istio's validation makes (config-api 12)."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field, model_validator

from config import objects
from config import virtual_routes as inner
from config.kinds.istio_schema import (
    MILLION,
    DecidedMatch,
    DestinationSpec,
    Headers,
    Host,
    MillisecondsOrZero,
    Percent,
    StringMatch,
    check_header_keys,
    check_host,
    header_matches,
    named,
)
from config.kinds.schema import (
    DnsLabel,
    Labels,
    Manifest,
    Model,
    NonEmpty,
    PortNumber,
    complain,
    fields,
    parse_network,
    refuse,
)
from config.kinds.service import check_unique
from config.kinds.virtual_actions import (
    CorsPolicy,
    DelegateSpec,
    DirectResponseSpec,
    FaultSpec,
    HttpDestination,
    MirrorPolicy,
    RedirectSpec,
    RetriesSpec,
    RewriteSpec,
    StreamDestination,
    check_weights,
)

MESH: Final = "mesh"
MAX_ENTRIES: Final = 2048
MAX_MATCHES: Final = 1024


def _network(text: str) -> str:
    found = parse_network(text)
    if found is None:
        refuse("an IPv4 or IPv6 address, or a CIDR block")
    return found


def _host(text: str) -> str:
    return text if text == "*" else check_host(text)


Network = Annotated[str, AfterValidator(_network)]
ExportTo = Annotated[list[NonEmpty], Field(max_length=1024)]


class MatchSpec(Model):
    """What requests and connections are matched by alike."""

    port: PortNumber | None = None
    source_labels: Labels = Field(default_factory=dict, alias="sourceLabels")
    source_namespace: DnsLabel = Field(default="", alias="sourceNamespace")
    gateways: list[NonEmpty] = Field(default_factory=list)

    @property
    def is_for_mesh(self) -> bool:
        return not self.gateways or MESH in self.gateways


class RequestMatchSpec(MatchSpec):
    name: str = ""
    stat_prefix: str = Field(default="", alias="statPrefix")  # names metrics in Envoy only
    uri: DecidedMatch | None = None
    scheme: DecidedMatch | None = None
    method: DecidedMatch | None = None
    authority: DecidedMatch | None = None
    headers: dict[str, StringMatch] = Field(default_factory=dict, max_length=64)
    without: dict[str, StringMatch] = Field(default_factory=dict, alias="withoutHeaders", max_length=64)
    query: dict[str, StringMatch] = Field(default_factory=dict, alias="queryParams", max_length=64)
    is_case_ignored: bool = Field(default=False, alias="ignoreUriCase")

    @model_validator(mode="after")
    def _check(self) -> RequestMatchSpec:
        check_header_keys("headers", self.headers)
        check_header_keys("withoutHeaders", self.without)
        text = self.uri.to_text() if self.uri is not None else None
        if text is not None and text.kind is not inner.TextKind.REGEX and not text.value.startswith("/"):
            complain(f'uri: {text.kind.value} "{text.value}" does not begin with /, as every path does')
        if "" in self.query:
            complain("queryParams: a parameter has no name")
        if self.method is not None and any(name.lower() == ":method" for name in self.headers):
            complain("headers: :method is there beside method; say it once")
        return self

    def to_match(self) -> inner.RequestMatch:
        return inner.RequestMatch(
            name=self.name,
            uri=self.uri.to_text() if self.uri is not None else None,
            is_case_ignored=self.is_case_ignored,
            scheme=self.scheme.to_text() if self.scheme is not None else None,
            method=self.method.to_text() if self.method is not None else None,
            authority=self.authority.to_text() if self.authority is not None else None,
            headers=header_matches(self.headers),
            without_headers=header_matches(self.without),
            query=named(self.query),
            port=self.port or 0,
            source_namespace=self.source_namespace,
            unsupported=("sourceLabels",) if self.source_labels else (),
            is_for_mesh=self.is_for_mesh,
        )


class HttpPartSpec(Model):
    name: str = ""
    matches: list[RequestMatchSpec] = Field(default_factory=list, alias="match", max_length=MAX_MATCHES)
    route: list[HttpDestination] = Field(default_factory=list, max_length=256)
    redirect: RedirectSpec | None = None
    direct_response: DirectResponseSpec | None = Field(default=None, alias="directResponse")
    delegate: DelegateSpec | None = None
    rewrite: RewriteSpec | None = None
    timeout: MillisecondsOrZero | None = None
    retries: RetriesSpec | None = None
    fault: FaultSpec | None = None
    mirror: DestinationSpec | None = None
    mirror_percent: Annotated[int, Field(ge=0, le=100)] | None = Field(default=None, alias="mirrorPercent")
    mirror_percentage: Percent | None = Field(default=None, alias="mirrorPercentage")
    mirrors: list[MirrorPolicy] = Field(default_factory=list, max_length=64)
    cors: CorsPolicy | None = Field(default=None, alias="corsPolicy")
    headers: Headers = Field(default_factory=Headers)

    @model_validator(mode="after")
    def _check(self) -> HttpPartSpec:
        actions = {
            "route": bool(self.route),
            "redirect": self.redirect is not None,
            "directResponse": self.direct_response is not None,
            "delegate": self.delegate is not None,
        }
        there = [name for name, is_there in actions.items() if is_there]
        if len(there) != 1:
            found = " and ".join(there) or "none of them"
            complain(f"found {found}; allowed: one of {', '.join(actions)}")
        check_weights([each.weight for each in self.route])
        self._check_company(there[0])
        return self

    def _check_company(self, action: str) -> None:
        """What goes with which action."""
        beside = {
            "rewrite": self.rewrite is not None and action in ("redirect", "directResponse"),
            "fault": self.fault is not None and action == "redirect",
            "mirror": self.mirror is not None and action in ("redirect", "directResponse"),
            "mirrors": bool(self.mirrors) and action in ("redirect", "directResponse"),
        }
        for name, is_wrong in beside.items():
            if is_wrong:
                complain(f"{name} does not go with {action}")
        if self.mirror is not None and self.mirrors:
            complain("mirror and mirrors exclude each other")
        if self.mirror is None and (self.mirror_percent is not None or self.mirror_percentage is not None):
            complain("mirrorPercentage is there without mirror")
        replaces_prefix = self.redirect is not None and self.redirect.prefix is not None
        kinds = {each.uri.prefix is not None if each.uri is not None else False for each in self.matches}
        if replaces_prefix and kinds != {True}:
            complain("redirect: prefixRewrite needs a uri prefix in every match")

    def to_part(self, namespace: str) -> inner.HttpPart:
        return inner.HttpPart(
            name=self.name,
            matches=tuple(each.to_match() for each in self.matches),
            targets=tuple(each.to_target() for each in self.route),
            redirect=self.redirect.to_redirect() if self.redirect is not None else None,
            direct_response=self.direct_response.to_response() if self.direct_response is not None else None,
            delegate=self.delegate.to_delegate(namespace) if self.delegate is not None else None,
            rewrite=self.rewrite.to_rewrite() if self.rewrite is not None else None,
            timeout_ms=self.timeout,
            retries=self.retries.to_retries() if self.retries is not None else None,
            fault=self.fault.to_fault() if self.fault is not None else None,
            mirrors=self._mirrors(),
            cors=self.cors.to_cors() if self.cors is not None else None,
            request_headers=self.headers.request.to_edit(),
            response_headers=self.headers.response.to_edit(),
        )

    def _mirrors(self) -> tuple[inner.Mirror, ...] | None:
        if self.mirrors:
            return tuple(each.to_mirror() for each in self.mirrors)
        if self.mirror is None:
            return None
        share = MILLION if self.mirror_percent is None else self.mirror_percent * MILLION // 100
        if self.mirror_percentage is not None:
            share = self.mirror_percentage.to_share()
        return (inner.Mirror(self.mirror.to_target(), share),)


class StreamMatchSpec(MatchSpec):
    subnets: list[Network] = Field(default_factory=list, alias="destinationSubnets", max_length=256)

    def to_match(self, sni_hosts: list[str], *, has_subnet: bool = False) -> inner.StreamMatch:
        parts = {
            "sourceLabels": bool(self.source_labels),
            "sourceNamespace": bool(self.source_namespace),
            "sourceSubnet": has_subnet,
        }
        return inner.StreamMatch(
            tuple(sni_hosts),
            tuple(self.subnets),
            self.port or 0,
            tuple(name for name, is_there in parts.items() if is_there),
            self.is_for_mesh,
        )


class TlsMatchSpec(StreamMatchSpec):
    sni_hosts: list[Host] = Field(alias="sniHosts", min_length=1, max_length=256)


class TcpMatchSpec(StreamMatchSpec):
    source_subnet: str = Field(default="", alias="sourceSubnet")


class TlsPartSpec(Model):
    matches: list[TlsMatchSpec] = Field(alias="match", min_length=1, max_length=MAX_MATCHES)
    route: list[StreamDestination] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _check(self) -> TlsPartSpec:
        check_weights([each.weight for each in self.route])
        return self

    def to_part(self) -> inner.StreamPart:
        return inner.StreamPart(
            tuple(each.to_match(each.sni_hosts) for each in self.matches),
            tuple(each.to_target() for each in self.route),
        )


class TcpPartSpec(Model):
    matches: list[TcpMatchSpec] = Field(default_factory=list, alias="match", max_length=MAX_MATCHES)
    route: list[StreamDestination] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _check(self) -> TcpPartSpec:
        check_weights([each.weight for each in self.route])
        return self

    def to_part(self) -> inner.StreamPart:
        return inner.StreamPart(
            tuple(each.to_match([], has_subnet=bool(each.source_subnet)) for each in self.matches),
            tuple(each.to_target() for each in self.route),
        )


class VirtualServiceSpec(Model):
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(default_factory=list, max_length=256)
    gateways: list[NonEmpty] = Field(default_factory=list, max_length=256)
    http: list[HttpPartSpec] = Field(default_factory=list, max_length=MAX_ENTRIES)
    tls: list[TlsPartSpec] = Field(default_factory=list, max_length=MAX_ENTRIES)
    tcp: list[TcpPartSpec] = Field(default_factory=list, max_length=MAX_ENTRIES)
    export_to: ExportTo = Field(default_factory=list, alias="exportTo")

    @property
    def is_for_mesh(self) -> bool:
        return not self.gateways or MESH in self.gateways

    @model_validator(mode="after")
    def _check(self) -> VirtualServiceSpec:
        check_unique("host", self.hosts)
        if not (self.http or self.tls or self.tcp):
            complain("has no route; allowed: at least one of http, tls, tcp")
        if not self.hosts:
            self._check_delegate()
        if self.is_for_mesh and "*" in self.hosts:
            complain("hosts: * is allowed only where gateways name no mesh")
        return self

    def _check_delegate(self) -> None:
        """Without hosts it is only what others delegate to."""
        if self.gateways:
            complain("hosts is missing; without it this is a delegate, and a delegate has no gateways")
        if self.tls or self.tcp:
            complain("hosts is missing; without it this is a delegate, and a delegate has http only")
        for index, part in enumerate(self.http):
            if part.delegate is not None:
                complain(f"http[{index}].delegate: a delegate cannot delegate further")
            for match in part.matches:
                if match.gateways or match.source_labels or match.source_namespace:
                    complain(
                        f"http[{index}].match: a delegate has no gateways, sourceLabels or sourceNamespace"
                    )


class VirtualService(Manifest):
    unread = fields("status")
    spec: VirtualServiceSpec

    def to_object(self) -> objects.VirtualService:
        meta, spec = self.meta(), self.spec
        return objects.VirtualService(
            meta=meta,
            hosts=tuple(spec.hosts),
            is_for_mesh=spec.is_for_mesh,
            http=tuple(each.to_part(meta.namespace) for each in spec.http),
            tls=tuple(each.to_part() for each in spec.tls),
            tcp=tuple(each.to_part() for each in spec.tcp),
            export_to=tuple(spec.export_to),
        )

    def remarks(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for index, part in enumerate(self.spec.http):
            where = f"spec.http[{index}]"
            fault = part.fault
            if fault is not None and fault.delay is not None and not fault.delay.to_share():
                found.append((f"{where}.fault.delay", "without percentage.value it delays no request"))
            if fault is not None and fault.abort is not None and fault.to_fault().abort_share == 0:
                found.append((f"{where}.fault.abort", "without percentage.value it aborts no request"))
            if not part.matches and index + 1 < len(self.spec.http):
                found.append(
                    (where, "takes every request that comes to it: what follows has no effect on any port")
                )
        return found
