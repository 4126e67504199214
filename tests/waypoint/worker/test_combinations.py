"""Any HTTP version on either side, with real peers: curl, nginx, nghttpd and grpcio."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from tests.waypoint.worker.kit import (
    PATIENCE_S,
    Routes,
    RunningProxy,
    free_port,
    nginx,
    program,
    running,
)
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker.answers import Answer

CURL_VERSIONS = ("--http1.1", "--http2-prior-knowledge")


@contextlib.contextmanager
def nghttpd(folder: Path) -> Iterator[Endpoint]:
    """A real HTTP/2 server that serves a folder and echoes uploads."""
    port = free_port()
    command = [program("nghttpd"), "--no-tls", "--echo-upload", "-d", str(folder), str(port)]
    with running(command, port, cwd=folder):
        yield Endpoint(("127.0.0.1", port), Application.HTTP2)


def curl(port: int, path: str, *arguments: str) -> bytes:
    command = [program("curl"), "-sS", "--max-time", str(PATIENCE_S), *arguments]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Routes]:
    web = tmp_path / "web"
    web.mkdir()
    (web / "file").write_bytes(b"payload" * 100_000)
    locations = f'location /h1/ {{ alias {web}/; }} location /hello {{ return 200 "hello"; }}'
    with nginx(tmp_path, locations) as port, nghttpd(web) as h2:
        yield Routes().to(b"/h1", Endpoint(("127.0.0.1", port))).to(b"/", h2)


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("path", ["/h1/file", "/file"])
def test_a_large_body_comes_through(peers: Routes, version: str, path: str) -> None:
    with RunningProxy(peers) as proxy:
        assert curl(proxy.port, path, version) == b"payload" * 100_000


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_an_upload_reaches_an_http2_server(peers: Routes, version: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"0123456789" * 300_000)
    with RunningProxy(peers) as proxy:
        got = curl(proxy.port, "/echo", version, "--data-binary", f"@{body}", "-H", "Expect:")
        assert got == body.read_bytes()


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("path", ["/h1/file", "/file"])
def test_head_has_a_length_and_no_body(peers: Routes, version: str, path: str) -> None:
    with RunningProxy(peers) as proxy:
        head = curl(proxy.port, path, version, "--head").lower()
        assert b"content-length: 700000" in head
        assert b" 200" in head.partition(b"\r\n")[0]


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_an_answer_made_here_says_so(version: str) -> None:
    routes = Routes().answer(b"/", Answer(418, "direct_response", body=b"short and stout"))
    with RunningProxy(routes) as proxy:
        answer = curl(proxy.port, "/", version, "-i").lower()
        assert b" 418" in answer.partition(b"\r\n")[0]
        assert b"server: mycelia" in answer
        assert answer.endswith(b"short and stout")


# gRPC


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """/t/unary, /t/stream (both ways), /t/fail (trailers after data), /t/refuse (trailers only)."""

    def service(self, details: grpc.HandlerCallDetails) -> object:
        match details.method:
            case "/t/unary":
                return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
            case "/t/stream":
                return grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
            case "/t/fail":
                return grpc.unary_stream_rpc_method_handler(self._fail)
            case "/t/slow":
                return grpc.unary_unary_rpc_method_handler(self._slow)
        return None

    def __init__(self) -> None:
        self.cancelled = futures.Future[bool]()

    def _fail(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield request
        context.abort(grpc.StatusCode.DATA_LOSS, "half of it")

    def _slow(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(lambda: self.cancelled.set_result(True))
        self.cancelled.result(PATIENCE_S)
        return request


@pytest.fixture
def echo() -> Iterator[tuple[Echo, Endpoint]]:
    handler = Echo()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, Endpoint(("127.0.0.1", port), Application.HTTP2)
    server.stop(None).wait()


def test_grpc_unary_and_streams(echo: tuple[Echo, Endpoint]) -> None:
    with (
        RunningProxy(Routes().to(b"/", echo[1])) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        for size in (0, 1, 100_000, 3_000_000):
            assert channel.unary_unary("/t/unary")(b"x" * size, timeout=PATIENCE_S) == b"x" * size
        pieces = [b"%d" % number for number in range(500)]
        assert list(channel.stream_stream("/t/stream")(iter(pieces), timeout=PATIENCE_S)) == pieces
        proxy.log.until(lambda log: len(log.exchanges) == 5)
        assert {each.outcome.grpc_status for each in proxy.log.exchanges} == {b"0"}


def test_grpc_trailers_after_data_reach_the_client(echo: tuple[Echo, Endpoint]) -> None:
    with (
        RunningProxy(Routes().to(b"/", echo[1])) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        answers = channel.unary_stream("/t/fail")(b"x", timeout=PATIENCE_S)
        assert next(answers) == b"x"
        with pytest.raises(grpc.RpcError) as failure:
            next(answers)
        assert failure.value.code() == grpc.StatusCode.DATA_LOSS
        assert failure.value.details() == "half of it"


def test_a_grpc_client_that_gives_up_ends_the_call_at_the_server(echo: tuple[Echo, Endpoint]) -> None:
    with (
        RunningProxy(Routes().to(b"/", echo[1])) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        call = channel.unary_unary("/t/slow").future(b"x")
        proxy.ask(lambda: None)
        while not proxy.upstreams.open_connections:
            proxy.ask(lambda: None)
        call.cancel()
        proxy.log.until(lambda log: len(log.exchanges) == 1)
        assert proxy.log.exchanges[0].outcome.flag == "DC"


def test_the_client_s_deadline_is_kept(echo: tuple[Echo, Endpoint]) -> None:
    with (
        RunningProxy(Routes().to(b"/", echo[1])) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        call = channel.unary_unary("/t/slow").future(b"x", timeout=0.2)
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert echo[0].cancelled.result(PATIENCE_S)


def test_a_grpc_client_without_a_server_gets_unavailable() -> None:
    with (
        RunningProxy(Routes().to(b"/", Endpoint(("127.0.0.1", free_port()), Application.HTTP2))) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel,
    ):
        call = channel.unary_unary("/t/unary").future(b"x", timeout=PATIENCE_S)
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        proxy.log.until(lambda log: len(log.exchanges) == 1)
        outcome = proxy.log.exchanges[0].outcome
        assert (outcome.status, outcome.flag, outcome.attempts) == (503, "UF", 3)
