"""What of this server can be reached from other machines, said once at its start."""

import logging

from reasonrt.serve.config import is_loopback

_log = logging.getLogger(__name__)


def open_ports() -> list[str]:
    """`address:port (program)` for each socket that this process or one below it listens on beyond loopback."""
    import psutil

    found = set()
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            for socket in process.net_connections(kind="tcp"):
                if socket.status == psutil.CONN_LISTEN and not is_loopback(socket.laddr.ip):
                    found.add(f"{socket.laddr.ip}:{socket.laddr.port} ({process.name()})")
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
    return sorted(found)


def warn_of_open_ports() -> None:
    """One line of log; a firewall is the reader's to set up."""
    if ports := open_ports():
        _log.warning("other machines can reach %s", ", ".join(ports))
