"""The demo's inner life: `python -m mesh.demo.background`, started by mesh/demo/command.py.

Enters private namespaces if it is not there yet (and is then the supervisor's child), tells the story, and
stays if the environment asks for it.
"""

from __future__ import annotations

import sys

from mesh.demo.command import EXIT_CANNOT, tell_inside
from mesh.lab.private import enter_private_namespace
from transport.errors import MeshError


def main() -> int:
    try:
        enter_private_namespace(sys.orig_argv)
        return tell_inside(is_fast="--fast" in sys.argv[1:])
    except MeshError as error:
        print(f"mycelia: {error}", file=sys.stderr)
        return EXIT_CANNOT


if __name__ == "__main__":
    sys.exit(main())
