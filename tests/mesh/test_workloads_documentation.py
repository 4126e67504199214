"""docs/workloads.md: its commands are commands, its manifests and options are accepted.

The rest is run by the systemd lab and by test_workload_command.py.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from config.kinds.registration_policy import FORBIDDEN_LABELS
from config.source.manifest_set import read_file
from mesh.cli import _parser
from node.enrolment.declaration import KNOWN, of_container
from node.enrolment.unit import OPTIONS, read_options

TEXT = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


COMMANDS = [
    line
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("mycelia ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_commands(command: str) -> None:
    assert _parser().parse_args(shlex.split(command)[1:]).work


def test_there_are_commands() -> None:
    assert {shlex.split(command)[2] for command in COMMANDS} == {"add", "list", "remove"}


def test_its_manifests_are_accepted() -> None:
    (block,) = blocks("yaml")
    assert read_file("docs", block, None).problems == ()


def test_its_container_declares_a_workload() -> None:
    (command,) = [
        line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if "podman" in line
    ]
    labels = dict(word.split("=", 1) for word in shlex.split(command) if word.startswith("mycelia.io/"))
    found = of_container(labels)
    assert found is not None
    assert (found.uid, dict(found.registration.labels)) == ("shop/web", {"app": "web", "version": "v1"})


def test_its_unit_declares_a_workload_and_waits_for_it() -> None:
    (block,) = blocks("ini")
    found = read_options([block])
    assert found is not None
    assert (found.uid, found.service_account) == ("shop/web", "web")
    (waiting,) = re.findall(r"^ExecStartPre=\+/opt/mycelia/bin/mycelia (.*)$", block, re.MULTILINE)
    options = _parser().parse_args(shlex.split(waiting))
    assert (options.workload_command, options.name, options.namespace) == ("await", "web", "shop")


def test_its_hook_is_the_runtimes_form() -> None:
    (block,) = blocks("json")
    hook = json.loads(block)
    assert re.search(next(iter(hook["when"]["annotations"])), "mycelia.io/workload")
    assert _parser().parse_args(hook["hook"]["args"][1:]).workload_command == "oci-hook"


def test_its_words_are_all_there_are() -> None:
    assert {f"mycelia.io/{word}" for word in KNOWN} <= set(re.findall(r"`(mycelia\.io/[a-z-]+)`", TEXT))
    assert {f"X-Mycelia-{option}" for option in OPTIONS} <= set(re.findall(r"X-Mycelia-[A-Za-z]+", TEXT))
    assert all(f"`{label}`" in TEXT for label in FORBIDDEN_LABELS)
