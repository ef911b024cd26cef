"""TCP ports on this machine: whether one is free, who has it, and free ones for tests."""

import os
import random
import socket

from console import Failure


def is_free(port, host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free(port, host, use, remedy):
    """Raises a Failure that names the port, what it is for and who has it."""
    if not is_free(port, host):
        holder = owner(port)
        taken = f"is taken by {holder[0]} (pid {holder[1]})" if holder else "is taken by another process"
        raise Failure(f"port {port} for {use} {taken}: stop that, or {remedy}")


def owner(port):
    """Name and id of the process that listens on the port; None where there is none or /proc does not let us see it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as source:
                rows = [line.split() for line in source.readlines()[1:]]
        except OSError:
            continue
        # 0A is LISTEN; the local address is "HEX:PORT".
        inodes |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        }
    for pid in filter(str.isdigit, os.listdir("/proc") if inodes else []):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in inodes for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as source:
                    return source.read().strip(), int(pid)
        except OSError:
            continue
    return None


def pick_free():
    """A free port below the range from which the system takes ports for outgoing connections.

    A port out of that range could be given to some client while a test has its server stopped, and a client that
    dials a dead loopback port of that range can even reach itself.
    """
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as source:
            top = int(source.read().split()[0])
    except OSError:
        top = 32768
    low, high = (15000, top - 1) if top > 16000 else (61000, 65535)
    for _ in range(1000):
        port = random.randint(low, high)
        if is_free(port):
            return port
    raise Failure(f"no free port found between {low} and {high}")
