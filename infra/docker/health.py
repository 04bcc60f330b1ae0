# ruff: noqa: INP001 - a script, not part of a package
"""Health checks of the containers: exit code 0 when well, else 1 and a line why. Starts nothing.

`health.py status FILE SECONDS`: the worker owns and has written its status file so lately, or it
stands by. `health.py connected PORT`: a connection to a broker's port is open.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_ESTABLISHED = "01"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def status_fault(path: Path, age_max_s: float, now_s: float) -> str:
    """Why the worker that writes `path` is not well; empty when it is."""
    try:
        status = json.loads(path.read_text())
        state, age_s = str(status["state"]), now_s - float(status["time_ms"]) / 1_000
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path}: no status yet ({type(error).__name__})"
    if state == "standby":
        return ""  # nothing is written while it takes over, for as long as that needs
    if state != "owner":
        return f"{path}: the worker is '{state}'"
    return f"{path}: {age_s:.0f} s old" if age_s > age_max_s else ""


def connection_fault(port: int, tables: tuple[str, ...] = _TABLES) -> str:
    """Why there is no open connection to a remote `port`; empty when there is one."""
    remote = f":{port:04X}"
    for table in tables:
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            columns = line.split()
            if columns[2].endswith(remote) and columns[3] == _ESTABLISHED:
                return ""
    return f"no connection to port {port}"


def main(arguments: list[str]) -> str:
    """The fault, empty for none."""
    if len(arguments) == 3 and arguments[0] == "status":
        return status_fault(Path(arguments[1]), float(arguments[2]), time.time())
    if len(arguments) == 2 and arguments[0] == "connected":
        return connection_fault(int(arguments[1]))
    return "expected: status FILE SECONDS, or connected PORT"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
