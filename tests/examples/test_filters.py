"""Both example filters, with the kit that users have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.kinds.catalogue import read_document
from config.kinds.yaml_documents import split
from waypoint.filters import Answer, Headers, Request, Response
from waypoint.filters.module import FilterInvalid, HookFailed
from waypoint.filters.testing import json_response, load, load_manifest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "filters"
SUPPORT = "spiffe://cluster.local/ns/shop/sa/support"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_their_manifests_are_accepted(path: Path) -> None:
    documents = list(split(path.read_text()))
    assert documents
    for document in documents:
        reading = read_document(document.text)
        assert not reading.findings
        assert reading.objects


def test_personal_data_is_blanked_however_deep() -> None:
    redact = load_manifest(EXAMPLES / "redact.yaml")
    people = {"people": [{"name": "A", "Email": "a@b.c", "more": {"IBAN": "DE00", "phone": None}}], "n": 1}
    response, body = json_response(people)
    done = redact.exchange(response=response, response_body=[body[:20], body[20:]])
    assert json.loads(done.response_body) == {
        "people": [{"name": "A", "Email": "***", "more": {"IBAN": "***", "phone": None}}],
        "n": 1,
    }
    assert done.request.headers.get("accept-encoding") == "identity"


def test_who_may_see_it_sees_it_and_what_is_no_json_passes() -> None:
    redact = load_manifest(EXAMPLES / "redact.yaml")
    response, body = json_response({"email": "a@b.c"})
    assert (
        redact.exchange(Request(caller=SUPPORT), response=response, response_body=body).response_body == body
    )
    text = Response(200, Headers([("content-type", "text/plain")]))
    assert redact.exchange(response=text, response_body=b"email: a@b.c").response_body == b"email: a@b.c"


def test_an_answer_that_only_says_it_is_json_fails_which_closes() -> None:
    redact = load_manifest(EXAMPLES / "redact.yaml")
    response, _ = json_response({})
    with pytest.raises(HookFailed, match="JSONDecodeError"):
        redact.exchange(response=response, response_body=b"{")


@pytest.mark.parametrize(("tenant", "header"), [("acme", "acme"), ("nobody", "common"), (7, "common")])
def test_a_tenant_is_routed_by_its_claim(tenant: object, header: str) -> None:
    request = Request(claims={"tenant": tenant}, headers=Headers([("x-tenant", "globex")]))
    done = load_manifest(EXAMPLES / "tenant.yaml").exchange(request)
    assert done.answer is None
    assert done.request.reroute
    assert done.request.headers.all("x-tenant") == [header]
    assert done.response.headers.get("x-served-for") == header


def test_without_a_token_there_is_no_tenant() -> None:
    done = load_manifest(EXAMPLES / "tenant.yaml").exchange(Request())
    assert isinstance(done.answer, Answer)
    assert done.answer.status == 401


def test_the_kit_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FilterInvalid, match="line 1"):
        load("def on_request(")
    with pytest.raises(FilterInvalid, match="none of the functions"):
        load("x = 1")
    with pytest.raises(HookFailed, match=r"on_request failed: ZeroDivisionError.*line 2"):
        load("def on_request(request):\n    1 / 0").exchange()
    (tmp_path / "two.yaml").write_text("kind: Service\n---\nkind: Service\n")
    with pytest.raises(FilterInvalid, match="0 FilterPolicies"):
        load_manifest(tmp_path / "two.yaml")
    for name, value in (("a b", "c"), ("", "c"), ("a", "b\r\nc: d"), ("a", "€")):
        with pytest.raises(ValueError, match="header"):
            Headers().add(name, value)
