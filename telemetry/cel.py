"""The expressions of the Telemetry kind: a typed subset of CEL (config-api 14). Pure.

Theory of operation. A parser by recursive descent makes one closure of each node and knows its kind, so that
what can never be true (a text compared with a number) is refused when it is written, by name and place. What
a request does not have is no value: it makes an expression fail, except behind `has()`, and except where the
other side of `&&` or `||` decides alone, as in CEL.

Bounds: `MAX_CHARACTERS`, `MAX_DEPTH` of nesting, `MAX_NODES`. There are no loops, no arithmetic and no
regular expressions but RE2's, so an evaluation costs what its text is long.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, Protocol, TypeAlias

from telemetry.cel_attributes import ATTRIBUTES, ROOTS, Kind
from transport.errors import Blame, MeshError
from transport.regex import PatternRejected, compile_re2

MAX_CHARACTERS: Final = 2048
MAX_DEPTH: Final = 16
MAX_NODES: Final = 256

Value: TypeAlias = "str | int | bool | tuple[str | int | bool, ...]"


class ExpressionRejected(MeshError):
    """An expression of a Telemetry object is not of the subset that waypoints evaluate."""

    code: ClassVar[str] = "MYC-1903"
    blame: ClassVar[Blame] = Blame.REMOTE


class Facts(Protocol):
    """What there is to know of a request; None: it has no such thing. Headers by names in small letters."""

    def attribute(self, path: str) -> str | int | bool | None: ...
    def header(self, path: str, name: str) -> str | None: ...


class NoValue(Exception):
    """The expression asks for what the request does not have."""


Evaluate: TypeAlias = Callable[[Facts], Value]


class Term(NamedTuple):
    """`is_reference`: an attribute or a header, which `has()` may ask for."""

    kind: Kind
    evaluate: Evaluate
    is_reference: bool = False
    literal: str | int | bool | None = None
    path: str = ""


class Expression:
    """`headers` are those that it asks for: (request.headers or response.headers, name)."""

    __slots__ = ("_evaluate", "headers", "kind", "text")

    def __init__(self, text: str, term: Term, headers: frozenset[tuple[str, str]]) -> None:
        self.text = text
        self.kind = term.kind
        self.headers = headers
        self._evaluate = term.evaluate

    def holds(self, facts: Facts) -> bool:
        """Whether it is true; what fails is not."""
        try:
            return self._evaluate(facts) is True
        except NoValue:
            return False

    def value(self, facts: Facts) -> str | None:
        """As the text of a label; None: it fails."""
        try:
            found = self._evaluate(facts)
        except NoValue:
            return None
        if isinstance(found, bool):
            return "true" if found else "false"
        return str(found)


def parse_condition(text: str) -> Expression:
    """Raises ExpressionRejected, also for what is no condition."""
    found = parse(text)
    if found.kind is not Kind.TRUTH:
        raise ExpressionRejected(f"expression {text[:80]!r} is {found.kind.value}, not a condition")
    return found


def parse_label(text: str) -> Expression:
    """Raises ExpressionRejected, also for what is no single value."""
    found = parse(text)
    if found.kind in (Kind.HEADERS, Kind.LIST):
        raise ExpressionRejected(f"expression {text[:80]!r} is {found.kind.value}, not one value")
    return found


def parse(text: str) -> Expression:
    """Raises ExpressionRejected."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionRejected(f"an expression has {len(text)} characters; at most {MAX_CHARACTERS}")
    parser = _Parser(text)
    term = parser.whole()
    return Expression(text, term, frozenset(parser.headers))


class _Token(NamedTuple):
    kind: str  # number, text, raw, name, sign, end
    text: str
    at: int


_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<number>[0-9]+(?![0-9A-Za-z_.]))
    | (?P<text>[rR]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign>&&|\|\||[=!<>]=|[!<>()\[\],.?:|+-])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {  # both sides are of one kind
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_METHODS: Final[dict[str, Callable[[str, str], bool]]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": str.__contains__,
}
_NO_NAMES: Final = frozenset({"true", "false", "null", "in", "has"})


class _Parser:
    """One expression's. `?:` and `|` bind least, then `||`, `&&`, comparisons, `+`, `!`, `.` and `[]`."""

    def __init__(self, text: str) -> None:
        self.headers: set[tuple[str, str]] = set()
        self._text = text
        self._tokens = list(self._split())
        self._next = 0
        self._depth = 0
        self._nodes = 0

    def _split(self) -> Sequence[_Token]:
        tokens: list[_Token] = []
        at = 0
        while True:
            found = _TOKEN.match(self._text, at)
            if found is None or found.lastgroup is None:
                rest = self._text[at:].lstrip()[:20]
                self._refuse(f"{rest!r} is not understood")
            token = _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
            tokens.append(token)
            if token.kind == "end":
                return tokens
            at = found.end()

    def _rejected(self, why: str) -> ExpressionRejected:
        return ExpressionRejected(
            f"expression {self._text[:80]!r}: {why}",
            next_step="docs/telemetry.md lists what an expression may say",
        )

    def _refuse(self, why: str) -> NoReturn:
        raise self._rejected(why)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *signs: str) -> str:
        """The next token if it is one of these signs, else nothing is taken."""
        token = self._token
        if token.kind == "sign" and token.text in signs:
            self._next += 1
            return token.text
        return ""

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            found = self._token.text or "the end"
            self._refuse(f"{sign!r} is missing before {found!r} (character {self._token.at})")

    def _node(self, term: Term) -> Term:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(f"it has more than {MAX_NODES} parts")
        return term

    def _want(self, term: Term, kind: Kind, where: str) -> Evaluate:
        if term.kind is not kind:
            self._refuse(f"{where} takes {kind.value}, not {term.kind.value}")
        return term.evaluate

    # --- grammar ---

    def whole(self) -> Term:
        term = self._choice()
        if self._token.kind != "end":
            self._refuse(f"{self._token.text!r} (character {self._token.at}) was not expected")
        return term

    def _choice(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"it is nested more than {MAX_DEPTH} deep")
        term = self._default()
        if self._take("?"):
            condition = self._want(term, Kind.TRUTH, "the condition before '?'")
            yes = self._choice()
            self._expect(":")
            no = self._choice()
            if yes.kind is not no.kind:
                self._refuse(f"'? :' has {yes.kind.value} on one side and {no.kind.value} on the other")
            first, second = yes.evaluate, no.evaluate
            term = self._node(
                Term(yes.kind, lambda facts: first(facts) if condition(facts) else second(facts))
            )
        self._depth -= 1
        return term

    def _default(self) -> Term:
        term = self._any()
        while self._take("|"):
            other = self._any()
            if other.kind is not term.kind:
                self._refuse(f"'|' has {term.kind.value} on one side and {other.kind.value} on the other")
            term = self._node(Term(term.kind, _first_of(term.evaluate, other.evaluate)))
        return term

    def _any(self) -> Term:
        term = self._all()
        while self._take("||"):
            left = self._want(term, Kind.TRUTH, "'||'")
            right = self._want(self._all(), Kind.TRUTH, "'||'")
            term = self._node(Term(Kind.TRUTH, _decided(left, right, is_decisive=True)))
        return term

    def _all(self) -> Term:
        term = self._comparison()
        while self._take("&&"):
            left = self._want(term, Kind.TRUTH, "'&&'")
            right = self._want(self._comparison(), Kind.TRUTH, "'&&'")
            term = self._node(Term(Kind.TRUTH, _decided(left, right, is_decisive=False)))
        return term

    def _comparison(self) -> Term:
        left = self._sum()
        token = self._token
        if token.kind == "name" and token.text == "in":
            self._next += 1
            return self._membership(left)
        sign = self._take(*_COMPARE)
        if not sign:
            return left
        right = self._sum()
        if left.kind is not right.kind or left.kind in (Kind.HEADERS, Kind.LIST):
            self._refuse(f"{sign!r} cannot compare {left.kind.value} with {right.kind.value}")
        if left.kind is Kind.TRUTH and sign not in ("==", "!="):
            self._refuse(f"{sign!r} cannot order true and false")
        compare, first, second = _COMPARE[sign], left.evaluate, right.evaluate
        return self._node(Term(Kind.TRUTH, lambda facts: compare(first(facts), second(facts))))

    def _membership(self, left: Term) -> Term:
        right = self._sum()
        if right.kind is Kind.HEADERS:
            if left.kind is not Kind.TEXT or not isinstance(left.literal, str):
                self._refuse("'in' asks headers for a name that is written as text")
            path, name = right.path, left.literal.lower()
            self.headers.add((path, name))
            return self._node(Term(Kind.TRUTH, lambda facts: facts.header(path, name) is not None))
        if right.kind is not Kind.LIST:
            self._refuse(f"'in' takes a list or headers, not {right.kind.value}")
        first, second = left.evaluate, right.evaluate
        return self._node(Term(Kind.TRUTH, lambda facts: first(facts) in second(facts)))  # type: ignore[operator]

    def _sum(self) -> Term:
        term = self._unary()
        while sign := self._take("+", "-"):
            if sign == "-":
                self._refuse("'-' between values is not supported")
            right = self._unary()
            left_text = self._want(term, Kind.TEXT, "'+'")
            right_text = self._want(right, Kind.TEXT, "'+'")
            term = self._node(Term(Kind.TEXT, _joined(left_text, right_text)))
        return term

    def _unary(self) -> Term:
        if self._take("!"):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._refuse(f"it is nested more than {MAX_DEPTH} deep")
            inner = self._want(self._unary(), Kind.TRUTH, "'!'")
            self._depth -= 1
            return self._node(Term(Kind.TRUTH, lambda facts: not inner(facts)))
        if self._take("-"):
            token = self._token
            if token.kind != "number":
                self._refuse("'-' stands before a number only")
            self._next += 1
            return self._literal(-int(token.text), Kind.NUMBER)
        return self._member()

    def _member(self) -> Term:
        term = self._primary()
        while True:
            if self._take("."):
                term = self._method(term)
            elif self._take("["):
                key = self._token
                if term.kind is not Kind.HEADERS or key.kind != "text":
                    self._refuse("'[' asks request.headers or response.headers for a name written as text")
                self._next += 1
                self._expect("]")
                term = self._header(term.path, self._string(key))
            else:
                return term

    def _method(self, term: Term) -> Term:
        token = self._token
        self._next += 1
        if term.kind is Kind.HEADERS and token.kind == "name":
            return self._header(term.path, token.text)
        if token.kind != "name" or token.text not in (*_METHODS, "matches"):
            self._refuse(f"function or field {token.text!r} is not supported")
        subject = self._want(term, Kind.TEXT, f"{token.text}()")
        self._expect("(")
        argument = self._choice()
        self._expect(")")
        wanted = self._want(argument, Kind.TEXT, f"{token.text}()")
        if token.text == "matches":
            return self._matches(subject, argument)
        method = _METHODS[token.text]
        return self._node(
            Term(Kind.TRUTH, lambda facts: method(subject(facts), wanted(facts)))  # type: ignore[arg-type]
        )

    def _matches(self, subject: Evaluate, argument: Term) -> Term:
        if not isinstance(argument.literal, str):
            self._refuse("matches() takes a pattern that is written as text")
        try:
            # CEL looks for the pattern anywhere in the text.
            engine = compile_re2(f"(?s:.*)(?:{argument.literal})(?s:.*)")
        except PatternRejected as error:
            self._refuse(error.text)
        match = engine.fullmatch
        return self._node(
            Term(Kind.TRUTH, lambda facts: match(str(subject(facts)).encode("utf-8", "replace")) is not None)
        )

    def _header(self, path: str, name: str) -> Term:
        name = name.lower()
        self.headers.add((path, name))

        def evaluate(facts: Facts) -> Value:
            found = facts.header(path, name)
            if found is None:
                raise NoValue
            return found

        return self._node(Term(Kind.TEXT, evaluate, is_reference=True))

    def _primary(self) -> Term:
        token = self._token
        if self._take("("):
            term = self._choice()
            self._expect(")")
            return term
        if self._take("["):
            return self._list()
        self._next += 1
        match token.kind:
            case "number" if len(token.text) <= 18:
                return self._literal(int(token.text), Kind.NUMBER)
            case "text":
                return self._literal(self._string(token), Kind.TEXT)
            case "name" if token.text in ("true", "false"):
                return self._literal(token.text == "true", Kind.TRUTH)
            case "name" if token.text == "has":
                return self._has()
            case "name" if token.text in ("size", "string", "int"):
                return self._convert(token.text)
            case "name" if token.text not in _NO_NAMES:
                return self._attribute(token.text)
            case _:
                raise self._rejected(f"{token.text or 'the end'!r} (character {token.at}) was not expected")

    def _list(self) -> Term:
        terms: list[Term] = []
        while not self._take("]"):
            if terms:
                self._expect(",")
            terms.append(self._choice())
        if any(term.literal is None for term in terms):
            self._refuse("a list holds texts, numbers, true and false as they are written")
        values = tuple(term.literal for term in terms if term.literal is not None)
        return self._node(Term(Kind.LIST, lambda _: values))

    def _has(self) -> Term:
        self._expect("(")
        term = self._choice()
        self._expect(")")
        if not term.is_reference:
            self._refuse("has() asks for an attribute or a header")
        inner = term.evaluate

        def evaluate(facts: Facts) -> Value:
            try:
                inner(facts)
            except NoValue:
                return False
            return True

        return self._node(Term(Kind.TRUTH, evaluate))

    def _convert(self, name: str) -> Term:
        self._expect("(")
        term = self._choice()
        self._expect(")")
        inner = term.evaluate
        if name == "size":
            self._want(term, Kind.TEXT, "size()")
            return self._node(Term(Kind.NUMBER, lambda facts: len(inner(facts))))  # type: ignore[arg-type]
        if name == "string":
            if term.kind not in (Kind.TEXT, Kind.NUMBER, Kind.TRUTH):
                self._refuse(f"string() takes one value, not {term.kind.value}")
            return self._node(Term(Kind.TEXT, _as_text(inner)))
        self._want(term, Kind.TEXT, "int()")
        return self._node(Term(Kind.NUMBER, _as_number(inner)))

    def _attribute(self, first: str) -> Term:
        if first not in ROOTS:
            self._refuse(f"attribute or function {first!r} is not supported")
        self._expect(".")
        token = self._token
        self._next += 1
        path = f"{first}.{token.text}"
        kind = ATTRIBUTES.get(path) if token.kind == "name" else None
        if kind is None:
            self._refuse(f"attribute {path!r} is not supported")
        if kind is Kind.HEADERS:
            return self._node(Term(kind, _no_value, path=path))

        def evaluate(facts: Facts) -> Value:
            found = facts.attribute(path)
            if found is None:
                raise NoValue
            return found

        return self._node(Term(kind, evaluate, is_reference=True, path=path))

    def _literal(self, value: str | int, kind: Kind) -> Term:
        return self._node(Term(kind, lambda _: value, literal=value))

    def _string(self, token: _Token) -> str:
        text = token.text
        if text[0] in "rR":
            return text[2:-1]

        def escape(found: re.Match[str]) -> str:
            if found[1] not in _ESCAPES:
                self._refuse(f"escape {found[0]!r} is not supported")
            return _ESCAPES[found[1]]

        return _ESCAPE.sub(escape, text[1:-1])


def _no_value(_: Facts) -> Value:
    raise NoValue


def _first_of(first: Evaluate, second: Evaluate) -> Evaluate:
    def evaluate(facts: Facts) -> Value:
        try:
            return first(facts)
        except NoValue:
            return second(facts)

    return evaluate


def _decided(left: Evaluate, right: Evaluate, *, is_decisive: bool) -> Evaluate:
    """`is_decisive` on either side is the result, whatever the other side is (or that it fails)."""

    def evaluate(facts: Facts) -> Value:
        try:
            if left(facts) is is_decisive:
                return is_decisive
        except NoValue:
            if right(facts) is is_decisive:
                return is_decisive
            raise
        return right(facts)

    return evaluate


def _joined(left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda facts: f"{left(facts)}{right(facts)}"


def _as_text(inner: Evaluate) -> Evaluate:
    def evaluate(facts: Facts) -> Value:
        found = inner(facts)
        return ("true" if found else "false") if isinstance(found, bool) else str(found)

    return evaluate


_NUMBER: Final = re.compile(r"-?[0-9]{1,18}").fullmatch


def _as_number(inner: Evaluate) -> Evaluate:
    def evaluate(facts: Facts) -> Value:
        text = str(inner(facts))
        if not text.isascii() or _NUMBER(text) is None:
            raise NoValue
        return int(text)

    return evaluate
