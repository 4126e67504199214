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
  {before_server}
  server {{
    listen 80;
    listen [::]:80;
    {server}
  }}
}}
"""

# Half of the answers to /flaky are failures, by chance.
FLAKY: Final = 'split_clients "$request_id" $is_bad { 50% 1; * 0; }'
STORE: Final = """\
add_header x-version {version} always;
    location = /flaky {{ if ($is_bad) {{ return 503 "broken\\n"; }} return 200 "{version}\\n"; }}
    location / {{ return 200 "{version}\\n"; }}"""


def require_programs() -> None:
    """Raises ProgramsMissingError that names everything missing and the one command that installs it."""
    missing = [name for name in PACKAGES if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[name] for name in missing}))
        raise ProgramsMissingError(
            f"the demo needs {', '.join(missing)}, not installed here",
            next_step=f"apt-get install -y {packages}",
        )
    for module, what in (("aiosmtpd", "the mail server aiosmtpd"), ("grpc", "grpcio")):
        if importlib.util.find_spec(module) is None:
            raise ProgramsMissingError(
                f"the demo needs {what}, not installed here",
                next_step=f"{sys.executable} -m pip install -r requirements-demo.txt",
            )


def nginx(directory: Path, root: Path) -> list[str]:
    """Command line of an nginx that serves `root` on port 80 and logs who asked to `access.log`."""
    return _nginx(directory, f"root {root};")


def store(directory: Path, version: str, *, is_flaky: bool = False) -> list[str]:
    """An nginx that answers everything with its version, also in the header `x-version`."""
    rule = FLAKY if is_flaky else "map $request_id $is_bad { default 0; }"
    return _nginx(directory, STORE.format(version=version), rule)


def greeter(name: str) -> list[str]:
    return [sys.executable, "-u", "-m", "mesh.demo.greeter", "serve", name]


def _nginx(directory: Path, server: str, before_server: str = "") -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        NGINX_CONFIGURATION.format(directory=directory, server=server, before_server=before_server)
    )
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
