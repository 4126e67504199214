"""Where the demo's files are, and who its actors are.

Everything is written below /run, which is a tmpfs of the demo's private mount namespace: it is gone with the
last process, whatever ended it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ExamplesMissingError

RUN: Final = Path("/run/mycelia-demo")
EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples" / "demo"
NODES: Final = ("alpha", "beta")
MESH_NAMESPACE: Final = "shop"
TRUST_DOMAIN: Final = "cluster.local"
XDS_PORT: Final = 15012
STATUS_PORT: Final = 15014


@dataclass(frozen=True, slots=True)
class Actor:
    """A workload of the story, as examples/demo/mesh names it."""

    name: str
    node: str
    namespace: str

    @property
    def spiffe_id(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/{self.namespace}/sa/{self.name}"


ACTORS: Final = (
    Actor("client", "alpha", "shop"),
    Actor("outsider", "alpha", "office"),
    Actor("web", "beta", "shop"),
    Actor("cache", "beta", "shop"),
    Actor("mail", "beta", "shop"),
    Actor("store-v1", "beta", "shop"),
    Actor("store-v2", "beta", "shop"),
    Actor("shadow", "beta", "shop"),
    Actor("greeter-1", "beta", "shop"),
    Actor("greeter-2", "beta", "shop"),
    Actor("waypoint", "beta", "shop"),
)
# Has no manifest before the second act: until then it is a namespace with nothing in it.
WAYPOINT: Final = ACTORS[-1]


def examples() -> Path:
    """The folder of manifests. Raises ExamplesMissingError outside a checkout."""
    if not (EXAMPLES / "mesh").is_dir():
        raise ExamplesMissingError(f"no manifests in {EXAMPLES}", next_step="run the demo from a checkout")
    return EXAMPLES


def manifests() -> Path:
    return RUN / "manifests"


def ztunnel_log(node: str) -> Path:
    return RUN / "logs" / f"ztunnel-{node}.log"


def agent_socket(node: str) -> Path:
    return RUN / node / "api.sock"
