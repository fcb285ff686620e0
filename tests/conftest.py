"""No test reaches the network, unless it is marked ``network``; real data only where it is."""

import ipaddress
import os
import socket
from pathlib import Path

import pytest

# Before torch loads: on tensors this small, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class NetworkBlockedError(RuntimeError):
    """Not an OSError, so that code which survives a broken connection cannot hide it."""


def _is_local(host) -> bool:
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        # Distributed tests may bind every interface; that goes nowhere by itself.
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True)
def block_network(request, monkeypatch):
    if request.node.get_closest_marker("network"):
        return
    connect, connect_ex, lookup = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def check(family, address):
        if family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise NetworkBlockedError(f"a test tried to reach {address}; mark it 'network'")

    def guarded_connect(self, address):
        check(self.family, address)
        return connect(self, address)

    def guarded_connect_ex(self, address):
        check(self.family, address)
        return connect_ex(self, address)

    def guarded_lookup(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        if not _is_local(name):
            raise NetworkBlockedError(f"a test tried to look up {name!r}; mark it 'network'")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture
def real_data() -> Path:
    """Data home with real sets; tests that use it are marked ``data``."""
    named = os.environ.get("MOEAPPS_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("needs real data: set MOEAPPS_DATA to a folder that holds it")
    return Path(named)


@pytest.fixture
def real_set(real_data):
    """Data home that holds the set of a card; a set of which only a part is there is no excuse."""

    def need(card) -> Path:
        files = [file for file in card.files if not file.optional]
        if not any(file.find(real_data) for file in files):
            pytest.skip(f"{card.name} is not in {real_data}: {files[0].path}")
        return real_data

    return need
