from __future__ import annotations

import subprocess
from pathlib import Path

from moyin.stack import ray

_CONFIG = """\
frontend prometheus
    bind :9101
listen stats
    bind *:8404
frontend http_frontend
    bind 127.0.0.1:8000
    bind *:84041
"""


def test_the_launcher_moves_statistics_and_metrics_to_loopback(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(_CONFIG)
    launcher = Path(ray.__file__).with_name("haproxy.sh")
    done = subprocess.run(
        ["sh", launcher, "-db", "-f", config],
        env={"PATH": "/usr/bin:/bin", "MOYIN_HAPROXY": "/bin/echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["-db", "-f", str(config)]
    moved = _CONFIG.replace("bind :9101", "bind 127.0.0.1:9101")
    assert config.read_text() == moved.replace("bind *:8404\n", "bind 127.0.0.1:8404\n")
