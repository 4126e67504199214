"""One request and its answer: from the downstream's headers to both directions' ends.

Phases: normalise and sanitise, pass the port's checks, decide (the plan), try an endpoint and perhaps
another, pass the response on. Bodies flow both ways as they come. Invariants: the client gets exactly one
final response or a reset; nothing is repeated after the response's headers have left; `finish` runs once and
leaves no timer, stream or try.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from transport.http1.errors import Http1Error
from transport.http1.grammar import may_be_trailer
from transport.http2.error_codes import ErrorCode
from transport.http2.events import Header
from transport.http_path import Refusal
from transport.reactor import Timer
from waypoint.state.hosts import Application, Endpoint
from waypoint.worker import answers
from waypoint.worker.answers import Answer
from waypoint.worker.attempt import Attempt
from waypoint.worker.body_pipe import BodyPipe
from waypoint.worker.checks import Check
from waypoint.worker.codec_details import codec_details
from waypoint.worker.examination import Examination
from waypoint.worker.failures import Cause, Failure, answer_to, flag_of
from waypoint.worker.filters.filtered_pipe import FilteredPipe
from waypoint.worker.filters.host import Fault
from waypoint.worker.filters.stage import Stage
from waypoint.worker.grpc_messages import CallMessages
from waypoint.worker.headers import (
    Request,
    octets_of,
    read_request,
    read_response,
    value_of,
)
from waypoint.worker.http_connection import HttpConnection
from waypoint.worker.plan import Matched, Outcome, Plan, Source
from waypoint.worker.response_gate import ResponseGate
from waypoint.worker.shadow import MAX_SHADOWS, Shadow

if TYPE_CHECKING:
    from waypoint.worker.proxy import Proxy
    from waypoint.worker.tracing import Trace

_WEBSOCKET: Final = b"websocket"
_TOO_SLOW: Final = Failure(Cause.TRY_TIMEOUT, "the exchange took too long")


class _NoSource:
    """Bodies made here owe nobody."""

    def consumed(self, stream_id: int, flow_bytes: int) -> None: ...


_NO_SOURCE: Final = _NoSource()


class Exchange:
    """Implements StreamUser for the downstream's stream."""

    __slots__ = (
        "_began",
        "_delay_timer",
        "_downstream",
        "_gate",
        "_has_response_begun",
        "_idle_timer",
        "_is_bodiless",
        "_is_over",
        "_is_upgrade_asked",
        "_seen_bytes",
        "_shadows",
        "_stream_id",
        "_timer",
        "_tried",
        "attempt",
        "examination",
        "is_upgraded",
        "messages",
        "outcome",
        "plan",
        "proxy",
        "request",
        "request_pipe",
        "response_pipe",
        "trace",
    )

    request: Request

    def __init__(self, proxy: Proxy, downstream: HttpConnection, stream_id: int) -> None:
        self.proxy = proxy
        self._downstream = downstream
        self._stream_id = stream_id
        self._began = proxy.reactor.now
        self.request_pipe = BodyPipe(downstream, stream_id)
        self.response_pipe: BodyPipe | None = None
        self.plan: Plan | None = None
        self.attempt: Attempt | None = None
        self.examination: Examination | None = None  # only where something protects the port
        self.messages: CallMessages | None = None  # of gRPC only
        self.trace: Trace | None = None  # where tracing is chosen
        self.outcome = Outcome()
        self.is_upgraded = False
        self._tried: list[Endpoint] = []
        self._has_response_begun = False
        self._is_bodiless = False
        self._is_over = False
        self._is_upgrade_asked = False
        self._timer: Timer | None = None
        self._idle_timer: Timer | None = None
        self._delay_timer: Timer | None = None
        self._seen_bytes = 0
        self._shadows: list[Shadow] | None = None
        self._gate: ResponseGate | None = None

    @property
    def source(self) -> Source:
        """Where the request comes from."""
        source: Source = self._downstream.source
        return source

    @property
    def protocol(self) -> str:
        """What the client speaks, as logs name it."""
        return "HTTP/2" if self._downstream.is_http2 else "HTTP/1.1"

    def begin(self, headers: list[Header], end_stream: bool) -> None:
        """The request's headers have come."""
        self.request_pipe.is_all_received = end_stream
        proxy = self.proxy
        request = read_request(headers, proxy.normalization)
        if isinstance(request, Refusal):
            self.outcome.request_header_bytes = octets_of(headers)
            fields = dict(headers)
            self._is_bodiless = fields.get(b":method") == b"HEAD"
            self.request = Request(b"", b"", b"", b"", None, [])
            self.respond(answers.normalisation_refused(request.reason, request.status))
            return
        self.request = request
        self.outcome.request_header_bytes = request.received_bytes
        if request.is_grpc:
            self.messages = proxy.observer.on_call(self)
        self._is_bodiless = request.method == b"HEAD"
        if proxy.tracer is not None:
            self.trace = proxy.tracer.begin(request, self.source)
        limits = proxy.limits
        excess = limits.excess_of(len(request.target), request.headers)
        if excess is not None:
            self.respond(answers.too_large(*excess))
            return
        if limits.changes_headers:
            request.headers = limits.change(request.headers, str(self.source.identity or ""))
        if request.upgrade:
            self._is_upgrade_asked = True
            self._keep_websocket_only()
            if not request.upgrade:
                self.respond(answers.UPGRADE_REFUSED)
                return
        checks = proxy.decider.checks(request, self._downstream.source)
        if checks:
            self._examine(checks)
        else:
            self._choose(None)

    def _examine(self, checks: Sequence[Check]) -> None:
        matched = self.proxy.decider.match(self.request, self._downstream.source)
        examination = self.examination = Examination(self, checks, matched)
        result = examination.begin()
        if result is None or isinstance(result, Answer):
            self.on_examined(result)

    def on_examined(self, answer: Answer | None) -> None:
        """The checks are done: the request may pass, or gets an answer."""
        if self._is_over:
            return
        examination = self.examination
        assert examination is not None
        if answer is not None:
            self.respond(answer)
        elif examination.must_rematch:
            self._choose(None)
        else:
            self._choose(examination.matched)

    def _choose(self, matched: Matched | None) -> None:
        proxy, request = self.proxy, self.request
        plan = proxy.decider.choose(request, self._downstream.source, matched)
        if isinstance(plan, Answer):
            self.respond(plan)
            return
        self.plan = plan
        self.request_pipe.keep(plan.replay_bytes, proxy.replay_budget)
        if plan.shadows and not request.upgrade:
            self._start_shadows(plan.shadows)
        if plan.delay_s:
            self._delay_timer = proxy.reactor.call_later(plan.delay_s, self._after_fault_delay)
        else:
            self._start_timers(plan)
            self._try()

    def _keep_websocket_only(self) -> None:
        request = self.request
        offered = {each.strip() for each in request.upgrade.lower().split(b",")}
        request.headers = [field for field in request.headers if field[0] != b"upgrade"]
        request.upgrade = _WEBSOCKET if _WEBSOCKET in offered and not self._downstream.is_http2 else b""
        if request.upgrade:
            request.headers.append((b"upgrade", _WEBSOCKET))

    def _start_shadows(self, endpoints: Sequence[Endpoint]) -> None:
        self._shadows = []
        for endpoint in endpoints:
            if len(self.proxy.shadows) >= MAX_SHADOWS:
                return
            shadow = Shadow(self.proxy, endpoint, self._application(endpoint), self.request.head())
            self._shadows.append(shadow)
            shadow.start(is_ended=self.request_pipe.is_all_received)

    # Tries

    def _after_fault_delay(self) -> None:
        """The time that the exchange may take begins after the fault's delay (waypoint-facts 2)."""
        assert self.plan is not None
        self._start_timers(self.plan)
        self._after_delay()

    def _after_delay(self) -> None:
        self._delay_timer = None
        self._try()

    def _try(self) -> None:
        plan = self.plan
        assert plan is not None
        endpoint = plan.pick(self._tried)
        if isinstance(endpoint, Answer):
            self.respond(endpoint)
            return
        self._tried.append(endpoint)
        self.outcome.attempts += 1
        self.outcome.upstream = endpoint
        application = self._application(endpoint)
        attempt = self.attempt = Attempt(self, endpoint, application)
        self.proxy.upstreams.acquire(endpoint, application, attempt)

    def _application(self, endpoint: Endpoint) -> Application:
        """Only HTTP/1.1 can change to another protocol; without a protocol of its own it is the client's."""
        if self.request.upgrade:
            return Application.HTTP1
        own = endpoint.application
        if own is None:
            return Application.HTTP2 if self._downstream.is_http2 else Application.HTTP1
        return own

    def on_attempt_failed(self, attempt: Attempt, failure: Failure) -> None:
        """The try is over without a whole response."""
        if self._is_over or attempt is not self.attempt:
            return
        self.attempt = None
        self.outcome.failure_text = failure.text
        if self._gate is not None and not self._has_response_begun:
            self.respond(answer_to(failure))
            return
        if self._has_response_begun:
            self._break_off(
                flag_of(failure), f"upstream_reset_after_response_started{{{failure.cause.value}}}"
            )
            return
        plan = self.plan
        assert plan is not None
        delay_s = plan.retry_after_failure(failure, self._tried, is_body_held=self.request_pipe.can_rewind)
        if delay_s is not None:
            self._try_again(delay_s)
        else:
            self.respond(answer_to(failure))

    def _try_again(self, delay_s: float) -> None:
        self.request_pipe.rewind()
        if delay_s > 0:
            self._delay_timer = self.proxy.reactor.call_later(delay_s, self._after_delay)
        else:
            self.proxy.reactor.call_soon(self._try_if_wanted)

    def _try_if_wanted(self) -> None:
        if not self._is_over and self.attempt is None:
            self._try()

    def on_unwritable(self, answer: Answer) -> None:
        """The request cannot be said in the upstream's protocol."""
        self.attempt = None
        self.respond(answer)

    # The response

    def on_informational(self, headers: list[Header]) -> None:
        if not self._has_response_begun:
            self._downstream.send_headers(self._stream_id, headers, False)

    def on_response(self, attempt: Attempt, status: int, headers: list[Header], end_stream: bool) -> None:
        """A final response's headers, or a 101."""
        plan = self.plan
        assert plan is not None
        if self._has_response_begun or self._gate is not None:
            return
        pipe = self.request_pipe
        if status != 101:
            delay_s = plan.retry_after_response(status, headers, self._tried, is_body_held=pipe.can_rewind)
            if delay_s is not None:
                self.attempt = None
                attempt.cancel()
                self._try_again(delay_s)
                return
        pipe.settle()
        now = self.proxy.reactor.now
        outcome = self.outcome
        outcome.status = status
        outcome.upstream_time_s = now - attempt.opened_at
        is_upgrade = status == 101
        if not is_upgrade:
            if self._is_upgrade_asked:
                pipe.is_all_received = pipe.is_all_sent = True  # a refused upgrade has no content
            headers = read_response(headers, int((now - attempt.opened_at) * 1000))
            plan.on_response(status, headers)
            if self.examination is not None:
                self.examination.change_response(status, headers)
        if end_stream and self.request.is_grpc:
            outcome.grpc_status = attempt.grpc_status
        if self.examination is not None and self.examination.stages and not is_upgrade:
            gate = self._gate = ResponseGate(
                self, self.examination.stages, attempt, (status, headers, end_stream)
            )
            self.response_pipe = gate.pipe
            gate.begin()
            return
        upstream = attempt.connection
        assert upstream is not None
        response = self.response_pipe = BodyPipe(upstream, attempt.stream_id, may_rewind=False)
        response.is_all_received = end_stream
        self.is_upgraded = is_upgrade
        self.send_head(attempt, headers, end_stream)

    def send_head(self, attempt: Attempt, headers: list[Header], end_stream: bool) -> None:
        """The response's headers leave; its body goes through `response_pipe`."""
        response, upstream = self.response_pipe, attempt.connection
        assert response is not None
        self.outcome.response_header_bytes = octets_of(headers)
        self.outcome.response_headers = headers
        self._has_response_begun = True
        downstream, stream_id = self._downstream, self._stream_id
        try:
            downstream.send_headers(stream_id, headers, end_stream)
        except Http1Error as error:
            self.outcome.failure_text = str(error)
            self._has_response_begun = False
            self.respond(answers.UNWRITABLE_RESPONSE)
            return
        response.connect(downstream, stream_id, is_ended=end_stream)
        if self.is_upgraded:
            upstream.is_upgraded = True  # type: ignore[union-attr]  # 101 exists in HTTP/1.1 only
            self._stop(self._timer)
            self.request_pipe.pump()
        if end_stream:
            self.check_end()

    def filter_request_body(self, stage: Stage) -> None:
        """The request's body goes through a filter too; nothing of it was sent yet."""
        before = self.request_pipe
        if before.is_empty:
            return  # there is none
        if isinstance(before, FilteredPipe):
            before.add(stage)
            return
        pipe = FilteredPipe(self._downstream, self._stream_id, [stage], "on_request_body", self.check_end)
        pipe.on_fault = self._on_request_fault
        self.request.headers = [line for line in self.request.headers if line[0] != b"content-length"]
        self.request_pipe = pipe
        for piece in before.take_held():
            pipe.push(piece, len(piece), end=False)
        if before.trailers is not None:
            pipe.push_trailers(before.trailers)
        elif before.is_all_received:
            pipe.push(memoryview(b""), 0, end=True)

    def _on_request_fault(self, fault: Fault) -> None:
        self.outcome.policy = f"filter {fault.trouble.value}: {fault.text}"
        details = f"filter_failed{{{fault.trouble.value}}}"
        self.respond(Answer(503, details, body=b"the request cannot be examined"))

    def on_response_trailers(self, headers: list[Header]) -> None:
        if self.request.is_grpc:
            self.outcome.grpc_status = value_of(headers, b"grpc-status")
        pipe = self.response_pipe
        if pipe is not None:
            pipe.push_trailers(headers)
            self.check_end()

    def respond(self, answer: Answer) -> None:
        """Answer here and now; whatever was begun upstream is given up."""
        if self._is_over:
            return
        if self._has_response_begun:
            self._break_off(answer.flag, answer.details)
            return
        outcome = self.outcome
        outcome.status, outcome.flag, outcome.details = answer.status, answer.flag, answer.details
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.cancel()
        if self._gate is not None:
            self._gate.cancel()
        self._has_response_begun = True
        downstream, stream_id = self._downstream, self._stream_id
        head, body = answer.head(is_grpc=self.request.is_grpc, is_bodiless=self._is_bodiless)
        if self.plan is not None:
            self.plan.on_response(answer.status, head)
        if self.examination is not None:
            self.examination.cancel()
            self.examination.change_response(answer.status, head)
        if self._is_upgrade_asked:
            self.request_pipe.is_all_received = True  # a refused upgrade has no content
        elif not self.request_pipe.is_all_received:
            downstream.announce_early_end()
        self.request_pipe.discard()
        outcome.response_headers = head
        downstream.send_headers(stream_id, head, not body)
        pipe = self.response_pipe = BodyPipe(_NO_SOURCE, 0)
        pipe.connect(downstream, stream_id, is_ended=not body)
        if body:
            pipe.push(memoryview(body), 0, end=True)
        self.check_end()

    # StreamUser, downstream

    def on_headers(self, headers: list[Header], end_stream: bool, is_trailers: bool) -> None:  # noqa: ARG002
        if is_trailers:
            caller = self.proxy.limits.caller_header.encode()
            headers = [f for f in headers if may_be_trailer(f[0]) and f[0].replace(b"_", b"-") != caller]
            for shadow in self._shadows or ():
                shadow.push_trailers(headers)
            self.request_pipe.push_trailers(headers)
            if self.examination is not None:
                self.examination.on_body()
            self.check_end()

    def on_body(self, data: memoryview, flow_bytes: int, end_stream: bool) -> None:
        if self._shadows is not None:
            for shadow in self._shadows:
                shadow.push(data, end=end_stream)
        if self.messages is not None:
            self.messages.requests.feed(data)
        self.request_pipe.push(data, flow_bytes, end=end_stream)
        limit = self.proxy.limits.max_body_bytes
        if limit and self.request_pipe.body_bytes > limit and not self.is_upgraded:
            self._refuse_body()
            return
        if self.examination is not None:
            self.examination.on_body()
        if end_stream or self.is_upgraded:
            self.check_end()

    def _refuse_body(self) -> None:
        """It grew over the limit while it came: the application sees a request that was broken off."""
        if not self._is_over and not self._has_response_begun:
            self.respond(answers.too_large(413, "request_payload_too_large"))
        elif not self._is_over:
            self._break_off("-", "request_payload_too_large")

    def on_writable(self) -> None:
        pipe = self.response_pipe
        if pipe is not None:
            pipe.pump()
            self.check_end()

    def on_reset(self, failure: Failure) -> None:
        """The client has gone, or broke the protocol."""
        if self._is_over:
            return
        outcome = self.outcome
        outcome.flag, outcome.details = "DC", "downstream_remote_disconnect"
        if failure.cause is Cause.PROTOCOL:
            outcome.flag = "DPE"
            outcome.details = codec_details(failure.text, is_http2=self.protocol == "HTTP/2")
        outcome.failure_text = failure.text
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.cancel()
        self._finish()

    # Ends

    def check_end(self) -> None:
        """Whether the response has left as a whole; then the exchange is over."""
        response = self.response_pipe
        if self._is_over or response is None or not response.is_all_sent:
            return
        request = self.request_pipe
        is_request_sent = request.is_all_sent
        if self.is_upgraded and not is_request_sent:
            return
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            if is_request_sent:
                attempt.finish()
            else:
                attempt.cancel()
        if request.is_all_received:
            self._downstream.release(self._stream_id)
        else:
            request.discard()
            self._downstream.abandon_request(self._stream_id)
        self._finish()

    def _break_off(self, flag: str, details: str) -> None:
        """The response cannot be brought to its end: the client must see that."""
        self.outcome.flag, self.outcome.details = flag, details
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.cancel()
        self._downstream.reset(self._stream_id, ErrorCode.INTERNAL_ERROR)
        self._finish()

    def _start_timers(self, plan: Plan) -> None:
        timeout_s = plan.timeout_s
        asked_s = self.request.grpc_timeout_s
        if asked_s is not None and (timeout_s is None or asked_s < timeout_s):
            timeout_s = asked_s
        if timeout_s is not None:
            self._timer = self.proxy.reactor.call_later(timeout_s, self._on_timeout)
        if plan.idle_timeout_s is not None:
            self._idle_timer = self.proxy.reactor.call_later(plan.idle_timeout_s, self._on_idle)

    def _on_timeout(self) -> None:
        if self.attempt is not None:
            self.attempt.tell(_TOO_SLOW)
        self.respond(answers.RESPONSE_TIMEOUT)

    def _on_idle(self) -> None:
        plan = self.plan
        assert plan is not None
        assert plan.idle_timeout_s is not None
        seen = self.request_pipe.body_bytes
        if self.response_pipe is not None:
            seen += self.response_pipe.body_bytes + 1  # headers came
        if seen != self._seen_bytes:
            self._seen_bytes = seen
            self._idle_timer = self.proxy.reactor.call_later(plan.idle_timeout_s, self._on_idle)
        else:
            is_complete = self.request_pipe.is_all_received
            self.respond(answers.STREAM_IDLE if is_complete else answers.REQUEST_IDLE)

    @staticmethod
    def _stop(timer: Timer | None) -> None:
        if timer is not None:
            timer.cancel()

    def _finish(self) -> None:
        self._is_over = True
        self.request_pipe.settle()
        if self._gate is not None:
            self._gate.cancel()
        if self.examination is not None:
            self.examination.end()
        if self._timer is not None:
            self._timer.cancel()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        for shadow in self._shadows or ():
            if not shadow.is_whole:
                shadow.cancel()
        outcome = self.outcome
        outcome.duration_s = self.proxy.reactor.now - self._began
        outcome.request_body_bytes = self.request_pipe.body_bytes
        if self.response_pipe is not None:
            outcome.response_body_bytes = self.response_pipe.body_bytes
        if self.plan is not None:
            self.plan.on_over(outcome)
        self.proxy.on_exchange_over(self)
