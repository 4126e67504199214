"""Makes the protobuf modules when a wheel (also an editable one) is built."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        runpy.run_path(str(Path(self.root) / "proto" / "generate.py"), run_name="__main__")
