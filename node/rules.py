"""The redirection rules of a captured workload's network namespace, as text. Pure.

Same rules, order, marks and table names as Istio ambient's nftables backend (ztunnel-facts 10.2 to 10.4), so
that this agent's ztunnel may be Istio's and Istio's agent may serve ours. Both families side by side in inet
tables. What differs from Istio: each table carries a comment with our version, and each apply replaces the
tables in one transaction instead of flushing them.

How a packet goes:

* the application connects out: nat/output sends it to 15001, unless it carries the ztunnel's mark;
* a peer connects in: nat/prerouting sends it to 15006; 15008 (HBONE) is left alone;
* the ztunnel connects to the application with its client's address as source: the packet goes through `lo`
  with mark 0x539, mangle/prerouting puts 0x111 on the connection, mangle/output gives the application's
  answers that mark, and policy routing (table 100) sends them back through `lo` to the transparent socket.
"""

from __future__ import annotations

from dataclasses import dataclass

RULES_VERSION = 1

PACKET_MARK = 0x539
CONNECTION_MARK = 0x111
MARK_MASK = 0xFFF
OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
DNS_PORT = 15053
ROUTE_TABLE = 100
ROUTE_PRIORITY = 32764
DNS_ZONE = 1

NAT_TABLE = "istio-ambient-nat"
MANGLE_TABLE = "istio-ambient-mangle"
RAW_TABLE = "istio-ambient-raw"
TABLES = (MANGLE_TABLE, NAT_TABLE, RAW_TABLE)

COMMENT = f"mycelia capture rules, version {RULES_VERSION}"


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """`captures_dns` sends port 53 to 15053: only where the ztunnel runs a DNS proxy.

    `lets_probes_through` leaves connections alone that come from the addresses to which a Kubernetes node
    translates its health checks. Nothing on plain Linux uses them, and whoever can send from them passes by
    the mesh, so both are off by default (docs/capture.md).
    """

    captures_dns: bool = False
    lets_probes_through: bool = False
    probe_ipv4: str = "169.254.7.127"
    probe_ipv6: str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"


@dataclass(frozen=True, slots=True)
class _Family:
    protocol: str  # the name in rules: ip, ip6
    loopback: str
    probe: str


def nft_script(options: RuleOptions) -> str:
    """One transaction for `nft -f -` that leaves exactly our tables, whatever was in them before."""
    families = (
        _Family("ip", "127.0.0.1", options.probe_ipv4),
        _Family("ip6", "::1", options.probe_ipv6),
    )
    parts = [nft_removal_script(), _mangle_table(), _nat_table(families, options)]
    if options.captures_dns:
        parts.append(_raw_table())
    return "\n".join(parts)


def nft_removal_script() -> str:
    """One transaction that leaves none of our tables. Adding first makes it succeed where there were none."""
    return "\n".join(f"add table inet {name}\ndelete table inet {name}" for name in TABLES) + "\n"


def table_names(options: RuleOptions) -> tuple[str, ...]:
    """The tables that are there after an apply."""
    return TABLES if options.captures_dns else (MANGLE_TABLE, NAT_TABLE)


def _not_ours() -> str:
    return f"meta mark & {MARK_MASK:#x} != {PACKET_MARK:#x}"


def _table(name: str, hooks: str, prerouting: list[str], output: list[str]) -> str:
    def chain(chain_name: str, lines: list[str]) -> str:
        body = "".join(f"    {line}\n" for line in lines)
        return f"  chain {chain_name} {{\n{body}  }}\n"

    return (
        f"table inet {name} {{\n"
        f'  comment "{COMMENT}"\n'
        + hooks
        + chain("istio-prerouting", prerouting)
        + chain("istio-output", output)
        + "}\n"
    )


def _hooks(prerouting: tuple[str, int], output: tuple[str, int]) -> str:
    def chain(hook: str, kind: str, priority: int) -> str:
        head = f"type {kind} hook {hook} priority {priority}; policy accept;"
        return f"  chain {hook} {{\n    {head}\n    jump istio-{hook}\n  }}\n"

    return chain("prerouting", *prerouting) + chain("output", *output)


def _mangle_table() -> str:
    mark_connection = f"ct mark set ct mark & {0xFFFFFFFF ^ MARK_MASK:#x} | {CONNECTION_MARK:#x}"
    return _table(
        MANGLE_TABLE,
        _hooks(("filter", -150), ("route", -150)),
        [f"meta mark & {MARK_MASK:#x} == {PACKET_MARK:#x} counter {mark_connection}"],
        [f"ct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} counter meta mark set ct mark"],
    )


def _nat_table(families: tuple[_Family, ...], options: RuleOptions) -> str:
    tcp, not_ours = "meta l4proto tcp", _not_ours()

    def each(pattern: str) -> list[str]:
        return [
            pattern.format(ip=family.protocol, loopback=family.loopback, probe=family.probe)
            for family in families
        ]

    from_probes = each(f"{tcp} {{ip}} saddr {{probe}} counter accept")
    to_probes = each(f"{tcp} {{ip}} daddr {{probe}} counter accept")
    prerouting = [
        *(from_probes if options.lets_probes_through else []),
        *each(
            f"{{ip}} daddr != {{loopback}} tcp dport != {HBONE_PORT} {not_ours}"
            f" counter redirect to :{INBOUND_PORT}"
        ),
    ]
    dns = [
        f'oifname != "lo" udp dport 53 {not_ours} counter redirect to :{DNS_PORT}',
        *each(f"{{ip}} daddr != {{loopback}} tcp dport 53 {not_ours} counter redirect to :{DNS_PORT}"),
    ]
    output = [
        *(to_probes if options.lets_probes_through else []),
        *(dns if options.captures_dns else []),
        f"{tcp} meta mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} counter accept",
        *each('oifname "lo" {ip} daddr != {loopback} counter accept'),
        *each(f"{tcp} {{ip}} daddr != {{loopback}} {not_ours} counter redirect to :{OUTBOUND_PORT}"),
    ]
    return _table(NAT_TABLE, _hooks(("nat", -100), ("nat", -100)), prerouting, output)


def _raw_table() -> str:
    return _table(
        RAW_TABLE,
        _hooks(("filter", -300), ("filter", -300)),
        [f"udp sport 53 {_not_ours()} counter ct zone set {DNS_ZONE}"],
        [f"udp dport 53 meta mark & {MARK_MASK:#x} == {PACKET_MARK:#x} counter ct zone set {DNS_ZONE}"],
    )
