"""The applications of the story: real programs, as Debian ships them, that know nothing of a mesh."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Final

from mesh.errors import ProgramsMissingError
from mesh.lab.tools import SEARCH_PATH

PACKAGES: Final = {
    "nginx": "nginx-light",
    "curl": "curl",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "openssl": "openssl",
    "tcpdump": "tcpdump",
    "nft": "nftables",
    "ip": "iproute2",
    "setpriv": "util-linux",
}

NGINX_CONFIGURATION: Final = """\
# One process: a second one would change its user, which the namespace of an ordinary user forbids.
daemon off;
user root root;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  default_type text/plain;
  log_format who '$remote_addr "$request" $status';
  access_log {directory}/access.log who;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 80;
    listen [::]:80;
    root {root};
  }}
}}
"""


def require_programs() -> None:
    """Raises ProgramsMissingError that names everything missing and the one command that installs it."""
    missing = [name for name in PACKAGES if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[name] for name in missing}))
        raise ProgramsMissingError(
            f"the demo needs {', '.join(missing)}, not installed here",
            next_step=f"apt-get install -y {packages}",
        )
    if importlib.util.find_spec("aiosmtpd") is None:
        raise ProgramsMissingError(
            "the demo needs the mail server aiosmtpd, not installed here",
            next_step=f"{sys.executable} -m pip install aiosmtpd",
        )


def nginx(directory: Path, root: Path) -> list[str]:
    """Command line of an nginx that serves `root` on port 80 and logs who asked to `access.log`."""
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(directory=directory, root=root))
    return ["nginx", "-c", str(configuration), "-e", str(directory / "error.log"), "-p", str(directory)]


def redis(directory: Path) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    options = {"port": "6379", "bind": "* -::*", "protected-mode": "no", "save": "", "appendonly": "no"}
    configuration = directory / "redis.conf"
    lines = [f'{key} "{value}"' if not value else f"{key} {value}" for key, value in options.items()]
    configuration.write_text("\n".join([*lines, f"dir {directory}", ""]))
    return ["redis-server", str(configuration)]


def mail() -> list[str]:
    """An SMTP server: it speaks first, before the client has sent a byte."""
    return [sys.executable, "-u", "-m", "aiosmtpd", "-n", "-l", "0.0.0.0:25"]
