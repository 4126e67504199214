"""The way into private namespaces, and what is said where a system forbids it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mesh.lab import private, supervise
from mesh.lab.errors import NamespacesForbiddenError
from mesh.lab.private import SUPERVISOR


@pytest.mark.namespaces
def test_a_system_that_forbids_namespaces_is_told_with_what_to_do() -> None:
    """No capabilities and no user namespaces left, as for an ordinary user of a hardened host."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"]
    probe = [sys.executable, "-I", "-S", str(SUPERVISOR), "--probe"]
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", *drop, *probe],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == supervise.EXIT_CANNOT
    assert result.stdout == ""
    assert result.stderr.startswith("cannot make a private network namespace: unshare: ")
    assert "sysctl -w user.max_user_namespaces=15000" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_reason_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(supervise.MARKER, "elsewhere")
    monkeypatch.setattr(private, "why_forbidden", lambda: "because")
    with pytest.raises(NamespacesForbiddenError, match="because"):
        private.enter_private_namespace(["true"])


@pytest.mark.namespaces
def test_the_marker_is_true_only_in_the_namespace_it_speaks_of() -> None:
    assert private.is_private()
    program = "from mesh.lab.private import is_private; print(is_private())"
    inside = [sys.executable, "-c", program]
    for command, expected in ((inside, "True"), (["unshare", "--net", *inside], "False")):
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert result.stdout.strip() == expected


@pytest.mark.namespaces
def test_a_program_that_does_not_exist_is_named() -> None:
    command = [sys.executable, "-I", "-S", str(SUPERVISOR), "--", "no-such-program"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 127
    assert result.stderr == "no-such-program: No such file or directory\n"
