"""All waypoints of the node: takes orders, gives each a keeper, takes over what an earlier agent started.

On disk, a folder for each: the order, and what the process keeps (`state`). Orders of the last contact stay
in force without the control plane, also after a restart; what is found running without such an order waits
for the first word of the control plane.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import trio

from node.errors import ControlPlaneError, WaypointProcessError
from node.waypoints.keeper import KeeperTimes, Plan, WaypointKeeper
from node.waypoints.order import (
    ADMIN_PORT,
    FIRST_SHARED_PORT,
    MAX_WAYPOINTS,
    PORTS_STEP,
    STATE_DIR,
    Host,
    Ports,
    WaypointOrder,
    environment,
    shared_ports,
)
from node.waypoints.process import Found, processes_under
from telemetry.logging import get_logger
from transport.netns import NetworkNamespace

ORDER_FILE: Final = "order.json"
PRIVATE: Final = 0o700

log = get_logger("node.waypoints")

FindNamespace = Callable[[str, str], NetworkNamespace | None]


class Waypoints:
    """`find_namespace(namespace, workload)` gives a new handle on where a workload is attached, None if it is
    not. `argv` is the program.
    """

    def __init__(
        self,
        directory: Path,
        host: Host,
        argv: tuple[str, ...],
        times: KeeperTimes,
        *,
        find_namespace: FindNamespace,
    ) -> None:
        self.argv = argv
        self._directory = directory
        self._host = host
        self._times = times
        self._find_namespace = find_namespace
        self._changed = trio.Event()
        self._keepers: dict[str, WaypointKeeper] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._slots: dict[str, int] = {}  # key -> block of ports in the node's own namespace
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; the processes go on. Started once those of an earlier agent are taken over."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            found = await trio.to_thread.run_sync(lambda: list(processes_under(self._directory)))
            self._restore({each.environment[STATE_DIR]: each for each in found if each.is_leader})
            task_status.started()
            await trio.sleep_forever()

    def keepers(self) -> Iterator[WaypointKeeper]:
        """By key."""
        return (self._keepers[key] for key in sorted(self._keepers))

    def apply(self, orders: Mapping[str, WaypointOrder]) -> None:
        """The whole of what is to run. Never blocks for long; ending a waypoint goes on by itself."""
        for key, keeper in self._keepers.items():
            if key not in orders:
                self._folder_of(keeper.order).joinpath(ORDER_FILE).unlink(missing_ok=True)
                keeper.wish(None)
        for key, order in orders.items():
            self._save(order)
            present = self._keepers.get(key)
            if present is None:
                self._keep(order)
            elif present.order != order or not present.is_wanted:
                present.wish(order)

    @property
    def next_change(self) -> trio.Event:
        """Set when something that is told about a waypoint may have changed; each is good for one change."""
        return self._changed

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def places_changed(self) -> None:
        """Some workload may have been attached or detached."""
        for keeper in self._keepers.values():
            place = self._place_of(keeper.order)
            if self._places.get(keeper.order.key) != place:
                self._places[keeper.order.key] = place
                keeper.wake()

    def _place_of(self, order: WaypointOrder) -> tuple[int, int]:
        with self.namespace_of(order)[0] as namespace:
            return namespace.identity

    # --- what keepers ask ---

    def namespace_of(self, order: WaypointOrder) -> tuple[NetworkNamespace, bool]:
        attached = self._find_namespace(order.namespace, order.workload)
        return (attached, False) if attached is not None else (NetworkNamespace.current(), True)

    def plan(self, order: WaypointOrder, *, is_own: bool) -> Plan:
        ports = shared_ports(self._slot(order.key)) if is_own else Ports()
        # On a host with one address for each waypoint, several share port 15008.
        bind = order.addresses[0] if is_own and len(order.addresses) == 1 else ""
        state = str(self._folder_of(order) / "state")
        return Plan(order, environment(order, self._host, ports, state, bind_address=bind))

    def check(self, order: WaypointOrder, *, is_own: bool) -> None:
        """Raises WaypointProcessError for what cannot work."""
        for other in self._keepers.values():
            shared = set(order.addresses) & set(other.order.addresses)
            if other.order.key != order.key and other.has_addresses and shared:
                raise WaypointProcessError(
                    f"waypoint {other.order.key} has the address {min(shared)} already"
                )
        host = self._host.control_plane.rpartition(":")[0].strip("[]")
        if not is_own and (host in {"localhost", "::1"} or host.startswith("127.")):
            raise WaypointProcessError(
                f"the control plane's address {host} leads nowhere from the workload's network namespace",
                next_step="give the agent an address that workloads reach (--control-plane)",
            )

    # --- inside ---

    def _slot(self, key: str) -> int:
        if key not in self._slots:
            taken = set(self._slots.values())
            self._slots[key] = next(slot for slot in range(2 * MAX_WAYPOINTS) if slot not in taken)
        return self._slots[key]

    def _folder_of(self, order: WaypointOrder) -> Path:
        return self._directory / order.folder

    def _restore(self, found: dict[str, Found]) -> None:
        """Keepers for saved orders, and for processes whose order is not there any more."""
        for path in sorted(self._directory.glob(f"*/{ORDER_FILE}")):
            try:
                order = WaypointOrder.from_json(path.read_text())
            except (OSError, UnicodeDecodeError, ControlPlaneError) as error:
                log.warning("waypoint_order_unreadable", path=str(path), error=str(error))
                continue
            self._keep(order, found.pop(str(self._folder_of(order) / "state"), None))
        for each in found.values():
            self._keep(_order_of(each), each)

    def _keep(self, order: WaypointOrder, found: Found | None = None) -> None:
        keeper = WaypointKeeper(order, self._folder_of(order), self, self._times, noticed=self._announce)
        self._keepers[order.key] = keeper
        if found is not None:
            slot, rest = divmod(int(found.environment.get(ADMIN_PORT, "0")) - FIRST_SHARED_PORT, PORTS_STEP)
            if slot >= 0 and rest == 0:
                self._slots[order.key] = slot
            with contextlib.suppress(WaypointProcessError):
                keeper.take_over(found.open())
        assert self._nursery is not None, "apply() before run()"
        self._nursery.start_soon(self._run, keeper)

    async def _run(self, keeper: WaypointKeeper) -> None:
        await keeper.run()
        key = keeper.order.key
        if self._keepers.get(key) is keeper:
            del self._keepers[key]
            self._slots.pop(key, None)
            self._places.pop(key, None)
        self._announce()

    def _save(self, order: WaypointOrder) -> None:
        """A failure (disk full) is logged: only a restart without the control plane would miss the order."""
        folder = self._folder_of(order)
        path = folder / ORDER_FILE
        text = order.to_json()
        try:
            if path.exists() and path.read_text() == text:
                return
            folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            fresh = folder / f".{ORDER_FILE}.new"
            fresh.write_text(text)
            fresh.replace(path)
        except OSError as error:
            log.warning("waypoint_order_not_saved", waypoint=order.key, error=error.strerror)


def _order_of(found: Found) -> WaypointOrder:
    """What a process was started for, from its environment."""
    values = found.environment
    return WaypointOrder(
        values["POD_NAMESPACE"],
        values["MYCELIA_WAYPOINT"].partition("/")[2],
        values["POD_NAME"],
        values["SERVICE_ACCOUNT"],
        tuple(values["INSTANCE_IP"].split(",")),
        values["TRUST_DOMAIN"],
        values["CLUSTER_ID"],
        values["NETWORK"],
    ).checked()
