"""What Linux can take from a process for good: namespaces, user, capabilities, and files by Landlock.

Called by ctypes, as Python has no names for most of it. Imported by bare interpreters, so nothing else is.
Sources: man pages unshare(2), user_namespaces(7), prctl(2), capset(2), landlock(7), and linux/landlock.h.
"""

import ctypes
import os
import stat
import struct

CLONE = {"mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
CLONE_NEWUSER = 0x10000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CAPABILITY_VERSION = 0x20080522

# Landlock: numbers of the calls (the same on all architectures), rights to files by the version that brought them.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
FILE_RIGHTS_1 = (1 << 13) - 1
READING = READ_FILE | READ_DIR
IN_FOLDER = READING | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
OF_FILE = WRITE_FILE | READ_FILE | TRUNCATE

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """Raises OSError where a call of the C library failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, value: int) -> None:
    """Set one property of this process. Raises OSError."""
    zero = ctypes.c_ulong(0)
    check(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def unshare(own_user: bool) -> list[str]:
    """Enter new namespaces and return their names. `own_user`: as an ordinary user can, in a user namespace.

    Children, not this process, are in the new pid namespace. In an own user namespace this process has all capabilities
    over the others, and its user and group keep their numbers. Raises OSError.
    """
    user, group = os.geteuid(), os.getegid()
    flags = sum(CLONE.values()) | (CLONE_NEWUSER if own_user else 0)
    check(libc.unshare(flags), "unshare")
    if own_user:
        prctl(PR_SET_DUMPABLE, 1)  # else, after a change of user, the files below are root's
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    return [*(["user"] if own_user else []), *CLONE]


def mount_folder(folder: str, size: int, files: int, user: int | None) -> None:
    """Put an empty file system in memory on a folder: `size` bytes, `files` files. It ends with the mount namespace."""
    check(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount")
    options = f"size={size},nr_inodes={files},mode=700" + ("" if user is None else f",uid={user},gid={user}")
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    check(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()), "mount")


def drop_user(user: int) -> None:
    """Become another user and group, without others. Raises OSError."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_capabilities() -> None:
    """Keep no capability, which a user namespace would give. Raises OSError."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    check(libc.capset(header, bytes(24)), "capset")


def landlock_version() -> int:
    """Version of Landlock that the kernel offers; 0: none."""
    return max(0, libc.syscall(ctypes.c_long(CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


class Ruleset:
    """Rules of Landlock; what no rule allows is refused: files, and from version 4 on TCP, from 6 on signals."""

    def __init__(self, version: int, limit_reading: bool) -> None:
        self.version, self.limits_reading = version, limit_reading
        self.handled = FILE_RIGHTS_1 | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
        self.handled |= IOCTL_DEV if version >= 5 else 0
        if not limit_reading:
            self.handled &= ~READING
        content = struct.pack("=QQQ", self.handled, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
        size = ctypes.c_size_t(len(content))
        self.file = check(libc.syscall(ctypes.c_long(CREATE_RULESET), content, size, ctypes.c_uint32(0)), "landlock")

    def allow(self, path: str, rights: int) -> None:
        """Allow rights to what is under a path, which may be missing."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= OF_FILE
            rule = struct.pack("=Qi", rights & self.handled, place)
            if rights & self.handled:
                kind, zero = ctypes.c_int(1), ctypes.c_uint32(0)
                check(libc.syscall(ctypes.c_long(ADD_RULE), ctypes.c_int(self.file), kind, rule, zero), "landlock")
        finally:
            os.close(place)

    def restrict(self) -> None:
        """Bind this process and its children for good; it must have given up new privileges."""
        check(libc.syscall(ctypes.c_long(RESTRICT_SELF), ctypes.c_int(self.file), ctypes.c_uint32(0)), "landlock")
        os.close(self.file)
