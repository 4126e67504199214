"""`python -m node`: see node/settings.py for the arguments, docs/capture.md for what it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import trio

from node.app import run
from node.settings import parse_arguments
from telemetry.logging import configure_logging
from transport.errors import MeshError


def main() -> int:
    try:
        settings = parse_arguments(sys.argv[1:])
        configure_logging(settings.log_level, is_json=settings.is_log_json)
        trio.run(run, settings)
    except (MeshError, BaseExceptionGroup) as error:
        reasons = list(mesh_errors(error))
        if not reasons:
            raise
        for reason in reasons:
            print(f"node agent: {reason}", file=sys.stderr)
        return 1
    return 0


def mesh_errors(error: BaseException) -> Iterator[MeshError]:
    """The errors that were raised on purpose; none if anything else is among them."""
    leaves = list(_leaves(error))
    if all(isinstance(leaf, MeshError) for leaf in leaves):
        yield from (leaf for leaf in leaves if isinstance(leaf, MeshError))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
