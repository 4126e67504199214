"""`mycelia workload oci-hook`: a `createRuntime` hook of the OCI runtime specification.

The runtime calls it when a container's namespaces are there and its process is not started, with the
container's state on standard input. A container whose annotations declare a workload is enrolled, and the
hook returns when it is captured; a status other than 0 keeps the runtime from starting it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

from mesh.errors import BadArgumentError, NotInTimeError
from node.api_client import AgentClient
from node.enrolment.declaration import of_container
from transport.errors import MeshError

MAX_STATE_BYTES: Final = 1024 * 1024
CAPTURE_S: Final = 30.0
LOOK_EVERY_S: Final = 0.02


def run(agent: Path, state: BinaryIO) -> int:
    """Raises a MeshError with the reason why the container may not start."""
    try:
        told = json.loads(state.read(MAX_STATE_BYTES))
        identifier, pid = str(told["id"]), int(told["pid"])
        annotations = {str(key): str(value) for key, value in (told.get("annotations") or {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArgumentError(
            f"standard input is not the state of a container: {error!r}",
            next_step="this command is for a container runtime: see docs/workloads.md",
        ) from error
    declaration = of_container(annotations)
    if declaration is None:
        return 0
    said = declaration.registration
    registration = {
        "labels": dict(said.labels),
        "addresses": list(said.addresses),
        "network": said.network,
    }
    with AgentClient(agent) as client:
        uid = client.attach(
            declaration.namespace,
            declaration.name,
            declaration.service_account,
            ("pid", str(pid)),
            registration=registration,
            container=identifier,
        )
        try:
            _await_capture(client, uid)
        except MeshError:
            client.detach(uid, grace_s=0.0)
            raise
    print(f"{uid} is captured", file=sys.stderr)
    return 0


def _await_capture(client: AgentClient, uid: str) -> None:
    """What is refused is not waited for."""
    deadline = time.monotonic() + CAPTURE_S
    while True:
        found = next((each for each in client.list() if each.uid == uid), None)
        if found is not None and found.is_captured:
            return
        if found is None:
            raise NotInTimeError(f"{uid} has ended before it was captured")
        if found.registration == "refused":
            raise NotInTimeError(
                f"{uid} may not be registered: {found.registration_problem}",
                next_step="allow it with a RegistrationPolicy, or take its annotations away",
            )
        if time.monotonic() > deadline:
            raise NotInTimeError(
                f"{uid} is not captured after {CAPTURE_S:g} s: {found.problem or found.reason or found.state}"
            )
        time.sleep(LOOK_EVERY_S)
