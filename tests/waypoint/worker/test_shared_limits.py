"""Limits that replicas share, on a real redis-server: exact together, and what a sick server does."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dataplane.settings import InvalidSetting
from proto.mycelia import rate_limit_pb2 as pb
from tests.waypoint.state.test_rate_limits import Key, limit
from tests.waypoint.worker.redis_kit import RedisServer, Replica, needs_redis
from tests.waypoint.worker.routing_kit import App
from tests.waypoint.worker.test_rate_limits import on_web
from waypoint.limits import RedisEndpoint
from waypoint.settings import settings_from

pytestmark = [needs_redis, pytest.mark.timeout(60)]
LOCAL, OPEN, CLOSED = pb.RateLimitPolicy.LOCAL, pb.RateLimitPolicy.OPEN, pb.RateLimitPolicy.CLOSED
HOUR = 3600.0


@pytest.fixture(name="redis")
def _redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def test_two_replicas_share_one_limit_exactly(redis: RedisServer) -> None:
    policy = on_web(limit(20, HOUR, shared=True))
    with App() as app, Replica(app, redis.port, policy) as one, Replica(app, redis.port, policy) as two:
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda index: (one, two)[index % 2].statuses(8), range(8)))
        statuses = [status for part in parts for status in part]
        assert sorted(statuses) == [200] * 20 + [429] * 44
        assert "not_shared" not in one.effects() | two.effects()


def test_what_a_client_is_told_is_the_shared_count(redis: RedisServer) -> None:
    policy = on_web(limit(2, 2 * HOUR, shared=True))
    with App() as app, Replica(app, redis.port, policy) as one, Replica(app, redis.port, policy) as two:
        assert one.get()[1]["x-ratelimit-remaining"] == "1"
        assert two.get()[1]["x-ratelimit-remaining"] == "0"
        status, headers, body = one.get()
        assert (status, body, headers["x-ratelimit-remaining"]) == (429, b"local_rate_limited", "0")
        assert 3590 <= int(headers["retry-after"]) <= 3600
        one.log.until(lambda log: len(log.exchanges) == 2)
        assert one.log.exchanges[-1].outcome.policy == "RateLimitPolicy/shop/calm l"


def test_keys_count_apart_and_are_gone_when_their_buckets_are_full(redis: RedisServer) -> None:
    policy = on_web(limit(1, HOUR, keys=[Key(header="x-tenant")], shared=True))
    with App() as app, Replica(app, redis.port, policy) as one, Replica(app, redis.port, policy) as two:
        assert (one.statuses(2, x_tenant="a"), two.statuses(2, x_tenant="b")) == ([200, 429], [200, 429])
        assert two.statuses(1, x_tenant="a") == [429]
        (first, *_) = redis.command("KEYS", "mycelia:rate:shop/calm:0:*").split(b"\r\n")[2::2]
        assert 3590 < int(redis.command("TTL", first.decode())[1:]) <= 3601


def test_another_version_of_a_policy_counts_anew(redis: RedisServer) -> None:
    with App() as app, Replica(app, redis.port, on_web(limit(1, HOUR, shared=True))) as one:
        assert one.statuses(2) == [200, 429]
        one.put(on_web(limit(2, HOUR, shared=True)))
        assert one.statuses(3) == [200, 200, 429]


def test_all_shared_limits_have_room_or_nothing_is_taken(redis: RedisServer) -> None:
    wide, narrow = limit(3, HOUR, name="wide", shared=True), limit(1, HOUR, name="narrow", shared=True)
    narrow.keys.append(Key(header="x-tenant"))
    with App() as app, Replica(app, redis.port, on_web(wide, narrow)) as one:
        assert one.statuses(5, x_tenant="a") == [200] + [429] * 4
        assert one.statuses(2, x_tenant="b") == [200, 429]
        assert one.statuses(1, x_tenant="c") == [200]
        assert one.statuses(1, x_tenant="d") == [429]


@pytest.mark.parametrize(
    ("mode", "expected"), [(LOCAL, [200, 200, 429]), (OPEN, [200] * 3), (CLOSED, [503] * 3)]
)
def test_without_the_server_the_failure_mode_decides(mode: int, expected: list[int], tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)  # not started
    policy = on_web(limit(2, HOUR, shared=True), failure_mode=mode)
    with App() as app, Replica(app, redis.port, policy) as one:
        assert one.statuses(3) == expected
        assert one.effects()["not_shared"] == 3
        assert any("rate_limit_redis_unusable" in str(line) for line in one.lines)


def test_a_server_that_is_killed_and_comes_back_counts_again(redis: RedisServer) -> None:
    policy = on_web(limit(1, HOUR, shared=True), failure_mode=OPEN)
    with App() as app, Replica(app, redis.port, policy) as one:
        assert one.statuses(2) == [200, 429]
        redis.stop()
        assert one.statuses(3) == [200] * 3
        redis.start()
        one.until_shared()
        assert one.statuses(2) == [429, 429]
        assert any("answers_again" in str(line) for line in one.lines)


def test_a_server_that_hangs_holds_up_nobody_for_long(redis: RedisServer) -> None:
    policy = on_web(limit(1, HOUR, shared=True), failure_mode=CLOSED)
    with App() as app, Replica(app, redis.port, policy, timeout_s=0.2) as one:
        assert one.statuses(2) == [200, 429]
        redis.signal(signal.SIGSTOP)
        assert one.statuses(4) == [503] * 4
        redis.signal(signal.SIGCONT)
        one.until_shared()
        assert one.statuses(1) == [429]


def test_a_lost_script_is_loaded_again(redis: RedisServer) -> None:
    policy = on_web(limit(1, HOUR, shared=True), failure_mode=OPEN)
    with App() as app, Replica(app, redis.port, policy) as one:
        assert one.statuses(2) == [200, 429]
        redis.command("SCRIPT", "FLUSH")
        assert one.statuses(1) == [200]
        one.until_shared()
        assert one.statuses(1) == [429]


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b"*1\r\n:1\r\n" * 9, b""]
)
def test_garbage_is_a_failure_like_any_other(garbage: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.recv(65536)
                sock.sendall(garbage)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    policy = on_web(limit(1, HOUR, shared=True), failure_mode=CLOSED)
    with App() as app, Replica(app, listener.getsockname()[1], policy) as one:
        assert one.statuses(3) == [503] * 3
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_a_password_is_read_from_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    policy = on_web(limit(1, HOUR, shared=True), failure_mode=CLOSED)
    with RedisServer(tmp_path, "--requirepass", "s3cret") as redis, App() as app:
        with Replica(app, redis.port, policy) as one:
            assert one.statuses(1) == [503]
        with Replica(app, redis.port, policy, password_file=str(secret), database=3) as two:
            assert two.statuses(2) == [200, 429]
        with Replica(app, redis.port, policy, password_file=str(tmp_path / "none")) as three:
            assert three.statuses(1) == [503]


def test_local_limits_hold_beside_shared_ones(redis: RedisServer) -> None:
    policy = on_web(limit(2, HOUR, name="mine"), limit(3, HOUR, name="ours", shared=True))
    with App() as app, Replica(app, redis.port, policy) as one, Replica(app, redis.port, policy) as two:
        assert one.statuses(3) == [200, 200, 429]
        assert two.statuses(2) == [200, 429]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://r.example", RedisEndpoint("r.example")),
        ("redis://me@[::1]:7000/2", RedisEndpoint("::1", 7000, "me", 2)),
        ("", None),
    ],
)
def test_where_the_server_is(text: str, expected: RedisEndpoint | None) -> None:
    given = {"MYCELIA_WAYPOINT": "shop/wp", "MYCELIA_RATE_LIMIT_REDIS": text}
    assert settings_from(given).redis == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rediss://r", "TLS to Redis"),
        ("redis://u:secret@r", "password"),
        ("redis://", "allowed"),
        ("redis://r:x", "allowed"),
        ("redis://r/a", "allowed"),
        ("http://r", "allowed"),
        ("r:6379", "allowed"),
    ],
)
def test_a_server_that_cannot_be_meant_is_an_error(text: str, complaint: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        settings_from({"MYCELIA_WAYPOINT": "shop/wp", "MYCELIA_RATE_LIMIT_REDIS": text})
    assert complaint in f"{caught.value.text} {caught.value.next_step}"
    assert "secret" not in str(caught.value)
