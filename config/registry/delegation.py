"""A VirtualService's routes with those of its delegates in their places (config-api 12). Pure.

A route that delegates becomes the delegate's routes: each request must satisfy a match of both, and what the
delegate's route leaves unsaid is the root's. A delegate's match that no match of the root can contain drops
that route, as at Istio: it would take requests that the root did not give away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from config.objects import Ref, VirtualService
from config.registry.virtual_index import delegate_ref
from config.virtual_routes import HttpPart, NamedMatch, RequestMatch, SourcedPart, TextKind, TextMatch

Find = Callable[[Ref], VirtualService | None]


@dataclass(frozen=True, slots=True)
class Merged:
    parts: tuple[SourcedPart, ...]
    problems: tuple[str, ...] = ()


def merge(root: VirtualService, find: Find) -> Merged:
    parts: list[SourcedPart] = []
    problems: list[str] = []
    for index, part in enumerate(root.http):
        if part.delegate is None:
            parts.append(_sourced(root, index, part))
            continue
        ref = delegate_ref(part.delegate)
        delegate = find(ref)
        where = f"http[{index}].delegate"
        refusal = _refusal(root, ref, delegate)
        if refusal or delegate is None:
            problems.append(f"{where}: {refusal}; the route is left out")
            continue
        for own_index, own in enumerate(delegate.http):
            made = _merge_part(part, own)
            if made is None:
                problems.append(
                    f"{where}: http[{own_index}] of {ref} matches what this route does not; it is left out"
                )
            else:
                parts.append(_sourced(delegate, own_index, made))
    return Merged(tuple(parts), tuple(problems))


def is_exported(export_to: Iterable[str], own: str, namespace: str) -> bool:
    """Whether an object of namespace `own` is meant for `namespace`."""
    words = tuple(export_to)
    return not words or "*" in words or namespace in words or ("." in words and own == namespace)


def _sourced(virtual: VirtualService, index: int, part: HttpPart) -> SourcedPart:
    meta = virtual.meta
    return SourcedPart(part, meta.namespace, f"{meta.namespace}/{meta.name}/{part.name or index}")


def _refusal(root: VirtualService, ref: Ref, delegate: VirtualService | None) -> str:
    if delegate is None:
        return f"there is no {ref}"
    if delegate.hosts:
        return f"{ref} has hosts of its own, so it is no delegate"
    if not is_exported(delegate.export_to, ref.namespace, root.meta.namespace):
        return f"{ref} is not exported to namespace {root.meta.namespace}"
    return ""


def _merge_part(root: HttpPart, own: HttpPart) -> HttpPart | None:
    matches = _merge_matches(root.matches, own.matches)
    if matches is None:
        return None
    has_headers = own.request_headers is not None or own.response_headers is not None
    return replace(
        own,
        name="-".join(filter(None, (root.name, own.name))),
        matches=matches,
        rewrite=own.rewrite or (root.rewrite if own.targets else None),
        timeout_ms=root.timeout_ms if own.timeout_ms is None else own.timeout_ms,
        retries=own.retries or root.retries,
        fault=own.fault or (root.fault if own.redirect is None else None),
        mirrors=own.mirrors if own.mirrors is not None or not own.targets else root.mirrors,
        cors=own.cors or root.cors,
        request_headers=own.request_headers if has_headers else root.request_headers,
        response_headers=own.response_headers if has_headers else root.response_headers,
    )


def _merge_matches(
    root: tuple[RequestMatch, ...], own: tuple[RequestMatch, ...]
) -> tuple[RequestMatch, ...] | None:
    """Every match of the delegate within those of the root; None if one of them fits in none."""
    if not root or not own:
        return root or own
    merged: list[RequestMatch] = []
    for each in own:
        within = [_merge_match(outer, each) for outer in root if not _is_conflict(outer, each)]
        if not within:
            return None
        merged += within
    return tuple(merged)


def _merge_match(root: RequestMatch, own: RequestMatch) -> RequestMatch:
    return replace(
        own,
        name="-".join(filter(None, (root.name, own.name))),
        uri=own.uri or root.uri,
        is_case_ignored=own.is_case_ignored if own.uri is not None else root.is_case_ignored,
        scheme=own.scheme or root.scheme,
        method=own.method or root.method,
        authority=own.authority or root.authority,
        headers=_merge_named(root.headers, own.headers),
        without_headers=_merge_named(root.without_headers, own.without_headers),
        query=_merge_named(root.query, own.query),
        port=own.port or root.port,
        source_namespace=root.source_namespace,
        unsupported=root.unsupported,
        is_for_mesh=root.is_for_mesh,
    )


def _merge_named(root: tuple[NamedMatch, ...], own: tuple[NamedMatch, ...]) -> tuple[NamedMatch, ...]:
    table = {each.name: each for each in root} | {each.name: each for each in own}
    return tuple(table[name] for name in sorted(table))


def _is_conflict(root: RequestMatch, own: RequestMatch) -> bool:
    texts = ((root.uri, own.uri), (root.scheme, own.scheme), (root.method, own.method))
    return (
        any(_is_outside(outer, inner) for outer, inner in (*texts, (root.authority, own.authority)))
        or _is_any_outside(root.headers, own.headers)
        or _is_any_outside(root.query, own.query)
        or _is_any_different(root.without_headers, own.without_headers)
        or (root.uri is not None and own.uri is not None and root.is_case_ignored != own.is_case_ignored)
        or (root.port > 0 and own.port > 0 and root.port != own.port)
    )


def _is_any_outside(root: tuple[NamedMatch, ...], own: tuple[NamedMatch, ...]) -> bool:
    outer = {each.name: each.text for each in root}
    return any(
        each.name in outer and (_is_outside(outer[each.name], each.text) or _is_wider(outer[each.name], each))
        for each in own
    )


def _is_wider(outer: TextMatch | None, own: NamedMatch) -> bool:
    """The delegate only wants it to be there, the root wants a value."""
    return own.text is None and outer is not None


def _is_any_different(root: tuple[NamedMatch, ...], own: tuple[NamedMatch, ...]) -> bool:
    """Of headers that must not be: two conditions on one header cannot both be said."""
    outer = {each.name: each for each in root}
    return any(each.name in outer and outer[each.name] != each for each in own)


def _is_outside(root: TextMatch | None, own: TextMatch | None) -> bool:
    """Whether `own` may accept what `root` does not. An expression cannot be compared."""
    if root is None or own is None:
        return False
    if TextKind.REGEX in (root.kind, own.kind):
        return root != own
    if root.kind is TextKind.EXACT:
        return root != own
    return not own.value.startswith(root.value)
