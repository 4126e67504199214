"""Redirection in a namespace: writes, checks and removes it with `nft` and `ip`. The shell around rules.py.

Everything here blocks for some 10 ms and runs in a worker thread (`Redirection` is free of shared state, so
several namespaces are worked on at once). Programs are started from a thread that is in the workload's
network namespace; only the network is the workload's, so programs and files are the agent's own.

Invariants: `apply` leaves rules and routes in place and has looked, or raises; `remove` leaves none of ours
and nothing else changed; both may be repeated at any time, also after half of an earlier call.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from node.errors import (
    KernelFeatureMissingError,
    PrivilegeMissingError,
    ProgramMissingError,
    RuleCommandError,
    RulesNotInPlaceError,
)
from node.faults import reach
from node.rules import (
    CONNECTION_MARK,
    MARK_MASK,
    ROUTE_PRIORITY,
    ROUTE_TABLE,
    RuleOptions,
    nft_removal_script,
    nft_script,
    table_names,
)
from transport.netns import NetworkNamespace

COMMAND_TIMEOUT_S = 10.0
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PACKAGES = {"nft": "nftables", "ip": "iproute2"}
FAMILIES = ("-4", "-6")
MARK = f"{CONNECTION_MARK:#x}/{MARK_MASK:#x}"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Programs:
    nft: str
    ip: str


def find_programs(search_path: str = SEARCH_PATH) -> Programs:
    """Raises ProgramMissingError, naming the package."""

    def find(name: str) -> str:
        path = shutil.which(name, path=search_path)
        if path is None:
            raise ProgramMissingError(
                f"the program `{name}` is not installed", next_step=f"apt-get install {PACKAGES[name]}"
            )
        return path

    return Programs(nft=find("nft"), ip=find("ip"))


class Redirection:
    """What may be done about redirection in one namespace after the other."""

    def __init__(self, programs: Programs, options: RuleOptions) -> None:
        self._programs = programs
        self._options = options
        self._script = nft_script(options)
        self._expected = ""  # digest of what `nft list` says of our tables after an apply; see `self_test`

    def self_test(self) -> None:
        """Applies and removes everything in a throw-away namespace and learns how the kernel lists the rules.

        Raises PrivilegeMissingError or KernelFeatureMissingError with what to do. Once, before anything else.
        """
        in_throwaway_namespace(self._try_everything)

    def apply(self, namespace: NetworkNamespace) -> None:
        """Puts rules and routes in place and checks them; does not touch what is right already.

        Raises RuleCommandError, KernelFeatureMissingError or RulesNotInPlaceError.
        """
        with namespace.entered():
            if not self._tables_are_right():
                self._nft(self._script)
            reach("rules: tables")
            for family in self._families():
                self._add_route(family)
            reach("rules: routes")
            self._check()

    def is_in_place(self, namespace: NetworkNamespace) -> bool:
        """True when everything is as `apply` leaves it."""
        with namespace.entered():
            return self._tables_are_right() and all(
                self._has_rule(family) and self._has_route(family) for family in self._families()
            )

    def is_absent(self, namespace: NetworkNamespace) -> bool:
        """True when nothing of ours is there."""
        with namespace.entered():
            return not self._our_tables() and not any(
                self._has_rule(family) or self._has_route(family) for family in self._families()
            )

    def remove(self, namespace: NetworkNamespace) -> None:
        """Takes rules and routes away. Raises RuleCommandError."""
        with namespace.entered():
            self._remove(lambda: reach("removal: tables"))

    def addresses(self, namespace: NetworkNamespace) -> tuple[str, ...]:
        """The workload's addresses of global scope, IPv4 first, in the order of its devices."""
        with namespace.entered():
            listed = self._list(["-j", "addr", "show", "up"])
        found = [
            (entry["family"], entry["local"])
            for device in listed
            for entry in device.get("addr_info", ())
            if entry.get("scope") == "global" and "local" in entry
        ]
        by_family = [[local for family, local in found if family == wanted] for wanted in ("inet", "inet6")]
        return tuple(by_family[0] + by_family[1])

    # --- inside; the calling thread is in the workload's namespace ---

    def _try_everything(self) -> None:
        self._run([self._programs.ip, "link", "set", "lo", "up"])
        self._nft(self._script)
        self._expected = self._listing_digest()
        for family in self._families():
            self._add_route(family)
        self._check()
        self._remove()
        if self._our_tables():
            raise RulesNotInPlaceError("nft reported success but did not delete the tables")

    def _check(self) -> None:
        missing = [] if self._tables_are_right() else ["nft tables"]
        for family in self._families():
            missing += [] if self._has_rule(family) else [f"ip {family} rule {ROUTE_PRIORITY}"]
            missing += [] if self._has_route(family) else [f"ip {family} route in table {ROUTE_TABLE}"]
        if missing:
            raise RulesNotInPlaceError(
                f"not there after writing them: {', '.join(missing)}",
                next_step="find what else changes nftables or routes in this namespace",
            )

    def _remove(self, tables_gone: Callable[[], None] = lambda: None) -> None:
        if self._our_tables():
            self._nft(nft_removal_script())
        tables_gone()
        for family in self._families():
            while self._has_rule(family):
                self._run([self._programs.ip, family, "rule", "del", *self._rule()])
            if self._has_route(family):
                self._run([self._programs.ip, family, "route", "del", *self._route()])

    def _families(self) -> tuple[str, ...]:
        """IPv6 is left out where the namespace's `lo` does without it (ztunnel-facts 10.3)."""
        try:
            has_ipv6 = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text().strip() == "0"
        except OSError:
            has_ipv6 = False
        return FAMILIES if has_ipv6 else FAMILIES[:1]

    @staticmethod
    def _rule() -> list[str]:
        return ["pref", str(ROUTE_PRIORITY), "fwmark", MARK, "lookup", str(ROUTE_TABLE)]

    @staticmethod
    def _route() -> list[str]:
        return ["local", "default", "dev", "lo", "table", str(ROUTE_TABLE)]

    def _add_route(self, family: str) -> None:
        if not self._has_rule(family):
            self._run([self._programs.ip, family, "rule", "add", *self._rule()])
        if not self._has_route(family):
            self._run([self._programs.ip, family, "route", "replace", *self._route()])

    def _has_rule(self, family: str) -> bool:
        rules = self._list(["-j", family, "rule", "show"])
        wanted = {
            "priority": ROUTE_PRIORITY,
            "fwmark": f"{CONNECTION_MARK:#x}",
            "fwmask": f"{MARK_MASK:#x}",
            "table": str(ROUTE_TABLE),
        }
        return any(wanted.items() <= rule.items() for rule in rules)

    def _has_route(self, family: str) -> bool:
        try:
            routes = self._list(["-j", family, "route", "show", "table", str(ROUTE_TABLE)])
        except RuleCommandError as error:
            if "does not exist" in error.text:  # the kernel has not made the table yet
                return False
            raise
        wanted = {"type": "local", "dst": "default", "dev": "lo"}
        return any(wanted.items() <= route.items() for route in routes)

    def _our_tables(self) -> list[str]:
        listed = self._run([self._programs.nft, "list", "tables", "inet"])
        names = {line.split()[-1] for line in listed.splitlines() if line.strip()}
        return sorted(names & set(table_names(RuleOptions(captures_dns=True))))

    def _tables_are_right(self) -> bool:
        wanted = sorted(table_names(self._options))
        return self._our_tables() == wanted and self._listing_digest() == self._expected

    def _listing_digest(self) -> str:
        """Digest of the rules as the kernel has them, without counters' values (`-s`)."""
        digest = hashlib.sha256()
        for name in table_names(self._options):
            listed = self._run([self._programs.nft, "-s", "list", "table", "inet", name])
            digest.update(listed.encode())
        return digest.hexdigest()

    def _list(self, arguments: Sequence[str]) -> list[dict[str, Any]]:
        """What `ip -j` lists."""
        text = self._run([self._programs.ip, *arguments])
        try:
            listed = json.loads(text or "[]")
        except json.JSONDecodeError as error:
            raise RuleCommandError(f"`ip {' '.join(arguments)}` wrote no JSON: {text[:200]!r}") from error
        return list(listed)

    def _nft(self, script: str) -> None:
        self._run([self._programs.nft, "-f", "-"], script)

    @staticmethod
    def _run(command: Sequence[str], script: str = "") -> str:
        return run_command(command, script)


def run_command(command: Sequence[str], script: str = "") -> str:
    """Standard output of a command; its failure as the error that says what to do."""
    shown = " ".join([Path(command[0]).name, *command[1:]])
    try:
        result = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=os.environ | {"LC_ALL": "C"},  # messages are looked into below
        )
    except subprocess.TimeoutExpired as error:
        raise RuleCommandError(f"`{shown}` took longer than {COMMAND_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise RuleCommandError(f"`{shown}` cannot be started: {error.strerror}") from error
    if result.returncode == 0:
        return result.stdout
    told = " ".join(result.stderr.split()) or f"it ended with {result.returncode}"
    if "Operation not permitted" in told:
        raise PrivilegeMissingError(
            f"`{shown}`: {told}", next_step="run the agent as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        )
    if script and ("No such file or directory" in told or "not supported" in told):
        raise KernelFeatureMissingError(
            f"the kernel does not know a rule: {told}",
            next_step="it needs nf_tables with NAT, redirect, conntrack and the inet family"
            " (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR, CONFIG_NFT_CT)",
        )
    raise RuleCommandError(f"`{shown}`: {told}")


def in_throwaway_namespace(work: Callable[[], Result]) -> Result:
    """Runs `work` on a thread of its own in a new, empty network namespace that ends with the thread."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            enter_new_namespace()
            results.append(work())
        except BaseException as failure:  # noqa: BLE001 - carried over to the caller's thread
            failures.append(failure)

    thread = threading.Thread(target=body, name="throwaway-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def enter_new_namespace() -> None:
    """Moves the calling thread, for good, into a new network namespace. Raises PrivilegeMissingError."""
    import ctypes  # noqa: PLC0415 - only here; Python 3.12 has os.unshare

    clone_new_network = 0x40000000
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(ctypes.c_int(clone_new_network)) != 0:
        number = ctypes.get_errno()
        raise PrivilegeMissingError(
            f"cannot make a network namespace: {os.strerror(number)}",
            next_step="run the agent as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        )
