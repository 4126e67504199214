"""The applications behind every contestant: nginx for HTTP, nghttpd with trailers in the shape of gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from loadtests.contestants import listens, program
from loadtests.topology import inside
from loadtests.waypoint.site import GRPC_BACKEND, HTTP2_BACKEND, HTTP_BACKEND, Site

BODY = "a body of sixty-four octets, which is about what an API answers\n"
BIG_BYTES = 1 << 30
GRPC_PATH = "/bench.Echo/Say"
GRPC_MESSAGE = b"\x00\x00\x00\x00\x10" + b"m" * 16

NGINX = """\
daemon off;
user root root;
master_process off;
pid {directory}/nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  http2_max_concurrent_streams 1000;
  keepalive_timeout 600s;
  client_max_body_size 0;
  client_body_buffer_size 128k;
  sendfile on;
  tcp_nopush off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen {port} backlog=4096;
    listen {h2_port} http2 backlog=4096;
    default_type text/plain;
    location = /big {{ alias {directory}/big; }}
    location = /sink {{ proxy_pass http://127.0.0.1:{port}/; }}  # takes all of a body before it answers
    location / {{ return 200 "{body}"; }}
  }}
}}
"""


@asynccontextmanager
async def backends(site: Site, directory: Path) -> AsyncIterator[None]:
    """Both of them in the site's server namespace, until the block ends."""
    folder = directory / f"{site.name}-backends"
    root = folder / "root"
    (root / "bench.Echo").mkdir(parents=True, exist_ok=True)
    (root / GRPC_PATH.lstrip("/")).write_bytes(GRPC_MESSAGE)
    with (folder / "big").open("wb") as big:
        big.truncate(BIG_BYTES)
    configuration = folder / "nginx.conf"
    text = NGINX.format(directory=folder, port=HTTP_BACKEND, h2_port=HTTP2_BACKEND, body=BODY.rstrip("\n"))
    configuration.write_text(text)
    nginx = ["nginx", "-c", str(configuration), "-e", str(folder / "error.log"), "-p", str(folder)]
    grpc = [
        "nghttpd",
        "--no-tls",
        "-d",
        str(root),
        "--trailer",
        "grpc-status: 0",
        "-m",
        "1000",
        str(GRPC_BACKEND),
    ]
    async with (
        program(inside(site.server, nginx), folder / "nginx.log", listens(HTTP_BACKEND)),
        program(inside(site.server, grpc), folder / "nghttpd.log", listens(GRPC_BACKEND)),
    ):
        yield
