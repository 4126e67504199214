"""The worker's settings travel as JSON and are refused when they are not this version's."""

from __future__ import annotations

import json

import pytest

from dataplane.worker.settings import SettingsRejected
from ztunnel.worker.settings import WorkerSettings


def test_settings_survive_the_way() -> None:
    settings = WorkerSettings(
        node="n", packet_mark=None, is_spoofing=True, illegal_ports=(1, 2), codec="reference"
    )
    assert WorkerSettings.from_json(settings.to_json()) == settings
    assert WorkerSettings.from_json("{}") == WorkerSettings()


def test_numbers_may_be_written_without_a_point() -> None:
    assert WorkerSettings.from_json('{"connect_timeout_s": 3}').connect_timeout_s == 3.0


@pytest.mark.parametrize(
    "values",
    [
        {"no_such": 1},
        {"node": 1},
        {"outbound_port": "15001"},
        {"outbound_port": True},
        {"is_access_log_on": 1},
        {"codec": "other"},
        {"packet_mark": "1337"},
        {"is_spoofing": "yes"},
        {"listeners": "outbound"},
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(SettingsRejected, match=next(iter(values)) if "codec" not in values else "codec"):
        WorkerSettings.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{", "1"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SettingsRejected):
        WorkerSettings.from_json(text)


def test_slices_for_the_hbone_layer() -> None:
    settings = WorkerSettings(stream_window_bytes=70_000, pool_max_streams=7, pool_idle_s=3.0)
    assert settings.hbone().stream_window_bytes == 70_000
    assert settings.pool().hbone.assumed_peer_streams == 7
    assert settings.pool().idle_s == 3.0
