from __future__ import annotations

import socket
from pathlib import Path

from moyin.stack.stand_in import count_listening_sockets, is_port_free


def test_only_a_listening_socket_occupies_a_port() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        assert not is_port_free(host, port)
        client = socket.create_connection((host, port))
        accepted, _ = listener.accept()
    with client, accepted:
        assert is_port_free(host, port)


def test_listening_sockets_of_both_ip_versions_are_counted(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F40 0100007F:C001 01 00000000:00000000\n"
        "   2: 0100007F:1F41 00000000:0000 0A 00000000:00000000\n"
    )
    assert count_listening_sockets(8000, tmp_path) == 1
    (tmp_path / "net" / "tcp6").write_text(
        "  sl  local_address                         remote_address                        st\n"
        "   0: 00000000000000000000000000000000:1F40 00000000000000000000000000000000:0000 0A\n"
    )
    assert count_listening_sockets(8000, tmp_path) == 2
