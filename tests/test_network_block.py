import socket
import urllib.request

import pytest


def test_outside_addresses_are_blocked():
    with socket.socket() as sock, pytest.raises(RuntimeError, match="tried to reach"):
        sock.connect(("192.0.2.1", 80))
    with socket.socket() as sock, pytest.raises(RuntimeError, match="tried to reach"):
        sock.connect_ex(("192.0.2.1", 80))


def test_name_lookups_are_blocked():
    with pytest.raises(RuntimeError, match="tried to look up"):
        urllib.request.urlopen("http://example.org/", timeout=1)


def test_loopback_works():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=2) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"x")
        assert client.recv(1) == b"x"
