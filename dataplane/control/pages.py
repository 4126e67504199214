"""The HTTP pages of a proxy: administration (15000), metrics (15020), readiness (15021); facts 12.1,
12.2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from dataplane.control import debug
from dataplane.control.readiness import Readiness
from telemetry.admin_http import ANY_METHOD, Handler, Request, Response
from telemetry.errors import InvalidLogLevel
from telemetry.logging import LogLevels
from telemetry.metrics import negotiate

_PAGES = (
    ("/config_dump", "what this proxy knows: workloads, services, policies, certificates, connections"),
    ("/certificates", "certificates: identity, life, renewal, last problem, root; clock"),
    ("/logging", "POST: log level; ?level=debug, ?level=scope=debug,other=warn, ?reset"),
    ("/quitquitquit", "POST: drain and end"),
    ("/debug/pprof/profile", "sampled stacks of the control process; ?seconds=10&amp;frequency=100"),
    ("/debug/pprof/heap", "where memory is held, once profiling is on"),
    ("/debug/pprof/heap/profiling", "?activate=true or false"),
    ("/debug/tasks", "the task tree of the control process"),
)


class AdminPages:
    """Built with what each page needs; `routes` is for the server."""

    def __init__(
        self,
        title: str,
        *,
        levels: LogLevels,
        on_level: Callable[[str], None],
        dump: Callable[[], Awaitable[str]],
        certificates: Callable[[], Awaitable[str]],
        quit_now: Callable[[], None],
    ) -> None:
        self._title = title
        self._levels = levels
        self._on_level = on_level
        self._dump = dump
        self._certificates = certificates
        self._quit_now = quit_now

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            (ANY_METHOD, "/"): self._index,
            (ANY_METHOD, "/config_dump"): self._config_dump,
            (ANY_METHOD, "/certificates"): self._certificate_list,
            ("POST", "/logging"): self._logging,
            ("POST", "/quitquitquit"): self._quit,
            (ANY_METHOD, "/debug/pprof/profile"): debug.profile,
            (ANY_METHOD, "/debug/pprof/heap"): debug.heap,
            (ANY_METHOD, "/debug/pprof/heap/profiling"): debug.heap_profiling,
            (ANY_METHOD, "/debug/tasks"): debug.tasks,
        }

    async def _index(self, _: Request) -> Response:
        await trio.lowlevel.checkpoint()
        items = "".join(f'<li><a href="{path}">{path}</a> {text}</li>' for path, text in _PAGES)
        page = f"<!doctype html><title>{self._title}</title><h1>{self._title}</h1><ul>{items}</ul>\n"
        return Response(200, page.encode(), "text/html; charset=utf-8")

    async def _config_dump(self, _: Request) -> Response:
        return Response.json(await self._dump())

    async def _certificate_list(self, _: Request) -> Response:
        return Response.json(await self._certificates())

    async def _logging(self, request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        if "reset" in request.query:
            self._levels.reset()
        elif "level" in request.query:
            try:
                self._levels.set(request.query["level"])
            except InvalidLogLevel as error:
                return Response.text(str(error), 400)
        self._on_level(self._levels.default)
        return Response.text(f"current log level is {self._levels}")

    async def _quit(self, _: Request) -> Response:
        await trio.lowlevel.checkpoint()
        self._quit_now()
        return Response.text("shutdown now")


def metrics_routes(scrape: Callable[[], Awaitable[bytes]]) -> dict[tuple[str, str], Handler]:
    async def metrics(request: Request) -> Response:
        body = await scrape()
        page = negotiate(body, request.headers.get("accept", ""), request.headers.get("accept-encoding", ""))
        headers = (("content-encoding", page.encoding),) if page.encoding else ()
        return Response(200, page.body, page.content_type, headers)

    return {("GET", "/metrics"): metrics, ("GET", "/stats/prometheus"): metrics}


def readiness_routes(readiness: Readiness) -> dict[tuple[str, str], Handler]:
    async def ready(_: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return Response.text(readiness.text, 200 if readiness.is_ready else 500)

    return {("GET", "/healthz/ready"): ready}
