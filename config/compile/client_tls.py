"""TLS to backends: what a policy asks for, with the certificates it names, or why it cannot be had. Pure.

Whatever is missing refuses the requests; nothing is ever left unverified because something is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

from config.objects import Ref, TlsMaterial
from config.traffic_policies import Tls
from proto.mycelia import waypoint_pb2 as pb

Materials = Mapping[Ref, TlsMaterial]


def compile_tls(tls: Tls, hostname: str, names: tuple[str, ...], materials: Materials) -> pb.ClientTls | str:
    """The message, or why there can be no connection. `names` are those that the service says itself."""
    if tls.problem:
        return f"{tls.problem} is not supported"
    server_name = tls.server_name or hostname
    if server_name.startswith("*"):
        return f"TLS to {hostname} needs a server name (sni)"
    made = pb.ClientTls(server_name=server_name, is_unverified=tls.is_unverified)
    if not tls.is_unverified:
        made.names.extend(tls.names or names or (server_name,))
        if not tls.trusts_system:
            roots = roots_of(tls, materials)
            if not roots:
                return "; ".join(problems(tls, materials)) or "there is no CA certificate"
            made.roots_pem = roots
            made.crl_pem = _revocations(tls, materials)
    if tls.shows_certificate:
        held = materials.get(tls.credential) if tls.credential is not None else None
        if held is None or not held.chain_pem or not held.key_pem:
            return "; ".join(problems(tls, materials)) or "there is no client certificate"
        made.chain_pem, made.key_pem = held.chain_pem, held.key_pem
    return made


def roots_of(tls: Tls, materials: Materials) -> str:
    """All that is good among the bundles."""
    held = (materials.get(ref) for ref in tls.bundles)
    return "\n".join(each.roots_pem for each in held if each is not None and each.roots_pem)


def _revocations(tls: Tls, materials: Materials) -> str:
    held = (materials.get(ref) for ref in tls.bundles)
    return "\n".join(each.crl_pem for each in held if each is not None and each.crl_pem)


def problems(tls: Tls, materials: Materials) -> list[str]:
    """What is wrong with what the policy refers to."""
    found = list(tls.bad_refs)
    for ref in tls.refs:
        held = materials.get(ref)
        if held is None:
            found.append(f"there is no {ref}")
        elif held.problem:
            found.append(f"{ref}: {held.problem}")
        elif ref in tls.bundles and not held.roots_pem and not tls.is_unverified:
            found.append(f"{ref} has no ca.crt")
        elif tls.shows_certificate and ref == tls.credential and not (held.chain_pem and held.key_pem):
            found.append(f"{ref} has no tls.crt or no tls.key")
    return found
