"""Fixtures: the two ways round, each with one Envoy for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.sides import EnvoyToUs, UsToEnvoy, envoy_to_us, us_to_envoy


@pytest.fixture(scope="module")
def running_envoy_to_us(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyToUs]:
    with envoy_to_us(tmp_path_factory.mktemp("to-us")) as side:
        yield side


@pytest.fixture
def inbound(running_envoy_to_us: EnvoyToUs) -> EnvoyToUs:
    """Envoy as the HBONE client of our inbound."""
    running_envoy_to_us.begin()
    return running_envoy_to_us


@pytest.fixture(scope="module")
def running_us_to_envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsToEnvoy]:
    with us_to_envoy(tmp_path_factory.mktemp("to-envoy")) as side:
        yield side


@pytest.fixture
def outbound(running_us_to_envoy: UsToEnvoy) -> UsToEnvoy:
    """Our outbound as the HBONE client of Envoy."""
    running_us_to_envoy.begin()
    return running_us_to_envoy
