"""`mycelia join TOKEN`: this host becomes a node. Writes what the node's processes need to one folder.

The first contact is checked with the roots in the token, so nobody between can pose as the control plane.
Files: `root-cert.pem`, `token` (0600) and `node.json` (name and control plane). Joining again replaces them.
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Final

import trio

from ca.join_token import JoinToken
from ca.node_token import require_node_name
from mesh.errors import BadArgumentError, JoinRefusedError
from node.renewal import read_membership, replace_file
from proto.mycelia import join_pb2 as pb
from transport.errors import MeshError
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.status import GrpcError, GrpcStatus
from transport.grpc.tls import TlsTrust

JOIN: Final = "/mycelia.join.JoinService/Join"
DEFAULT_FOLDER: Final = Path("/etc/mycelia")
CALL_S: Final = 15.0


def run(options: argparse.Namespace) -> int:
    """Exit code 0, or a MeshError."""
    token = JoinToken.decode(options.token)
    node = require_node_name(options.node or socket.gethostname())
    folder: Path = options.directory
    make_folder(folder)
    membership, address = trio.run(_join_any, token, node)
    host, port = address
    try:
        replace_file(folder / "root-cert.pem", membership.roots_pem, 0o644)
        replace_file(folder / "token", membership.node_token + "\n", 0o600)
        record = {
            "node": membership.node,
            "control_plane": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        }
        replace_file(folder / "node.json", json.dumps(record, indent=2) + "\n", 0o644)
    except OSError as error:
        raise BadArgumentError(f"cannot write to {folder}: {error.strerror}") from error
    print(f"this host is node {membership.node} of the mesh at {record['control_plane']}; files: {folder}")
    return 0


def make_folder(folder: Path) -> None:
    """Before the token is used: a use that ends in a folder that cannot be written is a use lost."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadArgumentError(
            f"cannot write to {folder}: {error.strerror}",
            next_step="run as root, or choose another --directory",
        ) from error


async def _join_any(token: JoinToken, node: str) -> tuple[pb.Membership, tuple[str, int]]:
    """At the first address that answers. Raises MeshError: a refusal, or what the last one said."""
    failure: MeshError | None = None
    for address in token.addresses:
        answer = await _attempt(token, node, *address)
        if isinstance(answer, pb.Membership):
            return answer, address
        failure = answer
        if isinstance(failure, JoinRefusedError):
            break
    assert failure is not None, "a token has an address"
    raise failure


async def _attempt(token: JoinToken, node: str, host: str, port: int) -> pb.Membership | MeshError:
    failure: MeshError | None = None
    try:
        return await _join(token, node, host, port)
    except* MeshError as group:
        failure = _first(group)
    assert failure is not None
    return failure


async def _join(token: JoinToken, node: str, host: str, port: int) -> pb.Membership:
    settings = ChannelSettings(host, port, tls=TlsTrust(roots_pem=token.roots_pem))
    request = pb.JoinRequest(credential=token.credential, node=node)
    async with open_channel(settings) as channel:
        try:
            return read_membership(await channel.unary(JOIN, request.SerializeToString(), timeout_s=CALL_S))
        except GrpcError as error:
            if error.status is not GrpcStatus.UNAUTHENTICATED:
                raise
            raise JoinRefusedError(
                f"the control plane at {host}:{port} does not accept the join token for node {node}",
                next_step="it may have expired, be used up or be for another node: "
                "the control plane's log says which; make a new one with `mycelia token create`",
            ) from error


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MeshError)
    return error
