"""What a confined program must not be able to do: a program that attempts it, and the trap that it is tried on."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

GUARANTEES = ("files", "reads", "network", "sockets", "processes", "signals")

# Each attempt must fail for its guarantee to be held. It also loads what programs often import.
ATTEMPTS = """
import collections, decimal, hashlib, json, math, os, random, re, socket, tempfile, typing, zlib

possible = set()

def attempt(guarantee, step):
    try:
        step()
        possible.add(guarantee)
    except OSError:
        pass

def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as end:
        end.settimeout(2)
        end.connect(address)

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

out = {out!r}
attempt("files", lambda: open(out + "/new", "w").close())
attempt("files", lambda: open(out + "/kept", "a").close())
attempt("files", lambda: os.truncate(out + "/kept", 0))
attempt("files", lambda: os.mkdir(out + "/deep"))
attempt("files", lambda: os.symlink("kept", out + "/link"))
attempt("files", lambda: os.rename(out + "/moved", out + "/moved_away"))
attempt("files", lambda: os.remove(out + "/gone"))
attempt("reads", lambda: open(out + "/kept").close())
attempt("reads", lambda: os.listdir(out))
attempt("network", lambda: connect(socket.AF_INET, ("127.0.0.1", {port})))
attempt("network", lambda: connect(socket.AF_INET, ("127.0.0.1", {port}), socket.SOCK_DGRAM))
attempt("sockets", lambda: connect(socket.AF_UNIX, out + "/socket"))
attempt("processes", fork)
attempt("signals", lambda: os.kill({parent}, 0))
with tempfile.TemporaryFile() as own:
    own.write(b"x")
raise SystemExit("possible: " + " ".join(sorted(possible)))
"""
POSSIBLE = "SystemExit: possible:"


@contextmanager
def trap() -> Iterator[tuple[str, int]]:
    """A folder, open to every user, with files and a listening socket; and a TCP port that answers."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trap-", ignore_cleanup_errors=True))
        os.chmod(folder, 0o777)
        for name in ("kept", "moved", "gone"):
            file = Path(folder, name)
            file.touch()
            file.chmod(0o666)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        with suppress(OSError):  # a path too long for it
            local.bind(f"{folder}/socket")
            local.listen()
            os.chmod(f"{folder}/socket", 0o777)
        yield folder, port.getsockname()[1]
