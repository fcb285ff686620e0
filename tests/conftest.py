"""No test reaches the network, unless it is marked ``network``; real data only where it is."""

import ipaddress
import os
import re
import shlex
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


ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


@pytest.fixture
def run_guide(tmp_path, monkeypatch):
    """Run the blocks of a guide in an empty folder, from the first to the last.

    The Python blocks share their names, which are returned; YAML is written to ``own.yaml``; in
    commands ``RUN`` is the newest run. The quickstart and the examples have tests of their own.
    """

    def run_command(line):
        from moeapps.cli.main import main

        words = shlex.split(line, comments=True)
        if words[:1] == ["moeapps"] and words[1] != "quickstart":
            runs = Path("runs").glob("*/*/*")
            newest = max(runs, key=lambda run: run.stat().st_mtime_ns, default="RUN")
            assert main([str(newest) if word == "RUN" else word for word in words[1:]]) == 0, line
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), line

    def run(name):
        monkeypatch.chdir(tmp_path)
        names = {}
        for language, text in BLOCK.findall((ROOT / "docs" / name).read_text()):
            if language == "python":
                exec(compile(text, name, "exec"), names)
            elif language == "yaml":
                Path("own.yaml").write_text(text)
            else:
                for line in text.splitlines():
                    run_command(line)
        return names

    return run
