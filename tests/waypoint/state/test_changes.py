"""Filters that change a message: headers, rewrite, redirect (config-api 6.3, 12)."""

from __future__ import annotations

import pytest

from proto.mycelia import waypoint_pb2 as pb
from tests.waypoint.state.builders import entry, needs_re2, path, request, rule, table
from waypoint.state.changes import answer_of, change_headers, location, request_changes, rewrite, split_port
from waypoint.state.errors import RoutesRejected
from waypoint.state.request import Header
from waypoint.state.rules import HeaderChanges, HttpRule, Redirect


def changes(
    *, put: dict[str, str] | None = None, add: dict[str, str] | None = None, remove: tuple[str, ...] = ()
) -> pb.HeaderChanges:
    field = pb.HeaderChanges.Field
    return pb.HeaderChanges(
        set=[field(name=name, value=value) for name, value in (put or {}).items()],
        add=[field(name=name, value=value) for name, value in (add or {}).items()],
        remove=remove,
    )


def compiled(message: pb.HeaderChanges) -> HeaderChanges:
    found = entry(rule(request_headers=message)).rule.request_headers
    assert found is not None
    return found


A = (b"a", b"1")
HOST = (b":authority", b"web")


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (changes(), [A], [A]),
        (changes(put={"A": "2"}), [A, A], [(b"a", b"2")]),
        (changes(put={"b": "2"}), [A], [A, (b"b", b"2")]),
        (changes(add={"a": "2"}), [A], [A, (b"a", b"2")]),
        (changes(remove=("A",)), [A, A, (b"b", b"1")], [(b"b", b"1")]),
        (changes(remove=("a",), add={"a": "2"}), [A], [(b"a", b"2")]),
        (changes(put={"a": "2"}, add={"a": "3"}), [A], [(b"a", b"2"), (b"a", b"3")]),
        (changes(put={"Host": "api"}), [HOST, A], [(b":authority", b"api"), A]),
        (changes(add={":authority": "api"}), [HOST, A], [(b":authority", b"api"), A]),
    ],
)
def test_removals_then_set_then_add(
    change: pb.HeaderChanges, before: list[Header], after: list[Header]
) -> None:
    assert change_headers(before, compiled(change)) == after


def test_the_rule_has_the_last_word_over_its_backend() -> None:
    message = rule(request_headers=changes(put={"a": "rule"}))
    message.forward.backends[0].request_headers.CopyFrom(changes(put={"a": "backend"}))
    found = entry(message)
    backend = found.rule.action.choose(0.0)  # type: ignore[union-attr]
    headers: list[Header] = [A]
    for each in request_changes(found, backend):
        headers = change_headers(headers, each)
    assert headers == [(b"a", b"rule")]


def rewritten(match: pb.HttpMatch, change: pb.PathChange, target: str) -> bytes:
    found = table(rule(match, rewrite=pb.Rewrite(path=change))).match(request(target))
    assert found is not None
    return rewrite(request(target), found).target


@pytest.mark.parametrize(
    ("prefix", "replacement", "target", "result"),
    [
        ("/foo", "/xyz", "/foo/bar", b"/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", b"/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", b"/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", b"/xyz/bar"),
        ("/foo", "/xyz", "/foo", b"/xyz"),
        ("/foo", "/xyz/", "/foo", b"/xyz"),
        ("/foo", "/xyz", "/foo/", b"/xyz/"),
        ("/foo", "", "/foo/bar", b"/bar"),
        ("/foo", "/", "/foo/bar", b"/bar"),
        ("/foo", "", "/foo", b"/"),
        ("/foo", "/", "/foo", b"/"),
        ("/foo", "", "/foo/", b"/"),
        ("/foo", "/", "/foo/", b"/"),
        ("/", "/xyz", "/bar", b"/xyz/bar"),
        ("/foo", "/xyz", "/foo/bar?q=/foo", b"/xyz/bar?q=/foo"),
    ],
)
def test_replacing_a_prefix_of_segments(prefix: str, replacement: str, target: str, result: bytes) -> None:
    assert rewritten(path(prefix=prefix), pb.PathChange(prefix=replacement), target) == result


@pytest.mark.parametrize(
    ("match", "replacement", "target", "result"),
    [
        (path(string_prefix="/v1"), "/v2", "/v1x/y", b"/v2x/y"),
        (path(string_prefix="/v1/"), "/", "/v1/y", b"/y"),
        (path(string_prefix="/v1"), "", "/v1", b"/"),
        (path(exact="/v1/y"), "/z", "/v1/y?q", b"/z?q"),
        (pb.HttpMatch(), "/z", "/v1/y", b"/z"),
        (path(string_prefix="/V1", is_case_ignored=True), "/v2", "/v1/Y", b"/v2/Y"),
    ],
)
def test_replacing_a_prefix_of_characters(
    match: pb.HttpMatch, replacement: str, target: str, result: bytes
) -> None:
    assert rewritten(match, pb.PathChange(prefix=replacement), target) == result


def test_a_whole_path_is_replaced_and_the_query_kept() -> None:
    assert rewritten(path(prefix="/a"), pb.PathChange(full="/b"), "/a/c?q=1") == b"/b?q=1"


@needs_re2
def test_a_rewrite_by_expression_knows_groups() -> None:
    change = pb.PathChange(regex=pb.RegexChange(match="/user/([^/]+)/(.*)", substitution=r"/\2/of/\1"))
    assert rewritten(pb.HttpMatch(), change, "/user/eve/page?x=1") == b"/page/of/eve?x=1"


@needs_re2
def test_a_substitution_with_a_stray_backslash_is_refused() -> None:
    change = pb.PathChange(regex=pb.RegexChange(match="/", substitution=r"\x"))
    with pytest.raises(RoutesRejected, match="backslash"):
        rewritten(pb.HttpMatch(), change, "/")


def test_the_original_path_is_told_only_where_it_changed() -> None:
    same = table(rule(rewrite=pb.Rewrite(authority="api"))).match(request("/a"))
    other = table(rule(rewrite=pb.Rewrite(path=pb.PathChange(full="/b")))).match(request("/a?x"))
    assert same is not None
    assert other is not None
    assert rewrite(request("/a"), same).original_path is None
    assert rewrite(request("/a"), same).authority == b"api"
    assert rewrite(request("/a?x"), other).original_path == b"/a?x"


@pytest.mark.parametrize(
    ("fields", "authority", "scheme", "service_port", "result"),
    [
        ({}, "web", "http", 80, b"http://web/p?q=1"),
        ({}, "web", "http", 8080, b"http://web:8080/p?q=1"),
        ({}, "web:8080", "http", 80, b"http://web:8080/p?q=1"),
        ({"hostname": "api"}, "web:8080", "http", 80, b"http://api/p?q=1"),
        ({"hostname": "api"}, "web", "http", 8080, b"http://api:8080/p?q=1"),
        ({"scheme": "https"}, "web:8080", "http", 8080, b"https://web/p?q=1"),
        ({"scheme": "http"}, "web", "https", 443, b"http://web/p?q=1"),
        ({"port": 8443}, "web:8080", "http", 80, b"http://web:8443/p?q=1"),
        ({"port": 80}, "web:8080", "http", 8080, b"http://web/p?q=1"),
        ({"port": 443, "scheme": "https"}, "web", "http", 80, b"https://web/p?q=1"),
        ({"port": 80, "scheme": "https"}, "web", "http", 80, b"https://web:80/p?q=1"),
        ({"port": 443}, "web", "http", 80, b"http://web:443/p?q=1"),
        ({}, "[fd00::1]:8080", "http", 80, b"http://[fd00::1]:8080/p?q=1"),
        ({"path": pb.PathChange(full="/z")}, "web", "http", 80, b"http://web/z?q=1"),
        ({"path": pb.PathChange(prefix="/z")}, "web", "http", 80, b"http://web/z?q=1"),
    ],
)
def test_where_a_redirect_points(
    fields: dict[str, object], authority: str, scheme: str, service_port: int, result: bytes
) -> None:
    message = rule(path(prefix="/p"), redirect=pb.Redirect(**fields))  # type: ignore[arg-type]
    facts = request("/p?q=1", authority=authority, scheme=scheme)
    found = table(message).match(facts)
    assert found is not None
    assert isinstance(found.rule.action, Redirect)
    assert location(facts, found, found.rule.action, service_port) == result


@pytest.mark.parametrize(
    ("redirect", "authority", "result"),
    [
        (pb.Redirect(), "web", b"http://web/a"),
        (pb.Redirect(), "web:9090", b"http://web:9090/a"),
        (pb.Redirect(scheme="https"), "web", b"https://web/a"),
        (pb.Redirect(scheme="https"), "web:80", b"https://web/a"),
        (pb.Redirect(scheme="https"), "web:9090", b"https://web:9090/a"),
        (pb.Redirect(scheme="https", port=80), "web", b"https://web:80/a"),
        (pb.Redirect(hostname="api"), "web:9090", b"http://api/a"),
        (pb.Redirect(hostname="api:8443"), "web:9090", b"http://api:8443/a"),
        (pb.Redirect(port=8443), "web:9090", b"http://web:8443/a"),
    ],
)
def test_a_redirect_of_a_virtual_service_keeps_what_host_says(
    redirect: pb.Redirect, authority: str, result: bytes
) -> None:
    redirect.keeps_port_of_host = True
    facts = request("/a", authority=authority)
    found = entry(rule(redirect=redirect))
    assert isinstance(found.rule.action, Redirect)
    assert location(facts, found, found.rule.action, 8080) == result


@pytest.mark.parametrize(("given", "status"), [(0, 302), (301, 301), (308, 308)])
def test_a_redirect_is_a_302_unless_told(given: int, status: int) -> None:
    found: HttpRule = entry(rule(redirect=pb.Redirect(status=given))).rule
    assert isinstance(found.action, Redirect)
    assert found.action.status == status


def test_a_rule_that_answers_by_itself_says_so() -> None:
    moved = answer_of(request("/a?q"), entry(rule(redirect=pb.Redirect(hostname="api", status=301))), 80)
    assert moved is not None
    assert (moved.status, moved.headers) == (301, ((b"location", b"http://api/a?q"),))
    said = answer_of(request(), entry(rule(direct_response=pb.DirectResponse(status=418, body=b"tea"))), 80)
    assert said is not None
    assert (said.status, said.body, said.details) == (418, b"tea", "direct_response")
    assert answer_of(request(), entry(rule()), 80) is None


@pytest.mark.parametrize(
    ("authority", "parts"),
    [
        (b"web", (b"web", 0)), (b"web:80", (b"web", 80)),
        (b"[::1]", (b"[::1]", 0)), (b"[::1]:8", (b"[::1]", 8)),
        (b"web:", (b"web:", 0)), (b"web:x", (b"web:x", 0)),
    ],
)  # fmt: skip
def test_host_and_port(authority: bytes, parts: tuple[bytes, int]) -> None:
    assert split_port(authority) == parts
