"""Refuses system calls to a program, by the kernel's seccomp filters.

Refused are calls that reach into other processes or the kernel, make namespaces, leave something behind (System V
objects, keys), or allocate memory that counts in no process's size: memfd, System V segments, shared anonymous
mappings.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from .kernel import PR_SET_SECCOMP, prctl

# Architecture -> its audit number, and its column in the tables of call numbers below.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
REFUSED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "syslog": (103, 116),
    "quotactl": (179, 60),
}
# Calls that may change only the calling process: call numbers, and the index of the argument that names the process.
OF_PROCESSES = {
    "prlimit64": ((302, 261), 0),
    "sched_setaffinity": ((203, 122), 0),
    "sched_setattr": ((314, 274), 0),
    "sched_setparam": ((142, 118), 0),
    "sched_setscheduler": ((144, 119), 0),
    "setpriority": ((141, 140), 1),
    "ioprio_set": ((251, 30), 1),
}
# Calls that change a file's owner, mode, times or attributes: Landlock does not confine them. -1: no such call.
OF_FILES = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
CLONE, CLONE3, MMAP, SOCKET, SETSOCKOPT = (56, 220), (435, 435), (9, 222), (41, 198), (54, 208)
BUFFERS = (7, 8)  # SO_SNDBUF, SO_RCVBUF
NEW_NAMESPACES = 0x7E020000
SHARED_ANONYMOUS = 0x21
FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink: the families that a network namespace confines

LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4  # offsets in ``struct seccomp_data``


def available() -> bool:
    """Whether this machine supports the filters."""
    return platform.machine() in ARCHITECTURES and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def install(sockets: bool, attributes: bool) -> None:
    """Sets the filter for this process and its children, for good; they cannot gain privileges (``no_new_privs``).

    Args:
      sockets: whether sockets are allowed, of the families that a network namespace confines.
      attributes: whether calls that change modes, owners and times of files have an effect; if not, they succeed
        without one, because copying a file needs them.

    Raises:
      OSError: the kernel has no filters.
    """
    if not available():
        raise OSError(errno.ENOSYS, f"no seccomp filters on {platform.machine()}")
    code = b"".join(struct.pack("=HBBI", *step) for step in program(platform.machine(), sockets, attributes))
    steps = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HP", len(code) // 8, ctypes.addressof(steps))
    prctl(PR_SET_SECCOMP, 2, header)


def program(machine: str, sockets: bool, attributes: bool) -> list[tuple[int, int, int, int]]:
    """The filter as steps: code, steps to skip if true, if false, operand."""
    audit, column = ARCHITECTURES[machine]

    def refuse(code: int) -> tuple[int, int, int, int]:
        return RETURN, 0, 0, FAIL | code

    def on(numbers: tuple[int, int], *steps: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        number = numbers[column]
        return [(EQUAL, 0, len(steps), number), *steps] if number >= 0 else []

    allow = (RETURN, 0, 0, ALLOW)
    made = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, audit), refuse(errno.ENOSYS), (LOAD, 0, 0, NUMBER)]
    made += [(AT_LEAST, 0, 1, 0x40000000), refuse(errno.ENOSYS)]  # the second set of call numbers on x86_64
    for numbers in REFUSED.values():
        made += on(numbers, refuse(errno.EPERM))
    for numbers, place in OF_PROCESSES.values():
        made += on(numbers, (LOAD, 0, 0, 16 + 8 * place), (EQUAL, 1, 0, 0), refuse(errno.EPERM), allow)
    for numbers in () if attributes else OF_FILES.values():
        made += on(numbers, refuse(0))
    made += on(CLONE3, refuse(errno.ENOSYS))  # its flags are in memory; the C library then uses clone
    made += on(CLONE, (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NEW_NAMESPACES), refuse(errno.EPERM), allow)
    shared = ((LOAD, 0, 0, 40), (AND, 0, 0, SHARED_ANONYMOUS), (EQUAL, 0, 1, SHARED_ANONYMOUS))
    made += on(MMAP, *shared, refuse(errno.EPERM), allow)
    buffers = [(LOAD, 0, 0, 32), *((EQUAL, len(BUFFERS) - index, 0, name) for index, name in enumerate(BUFFERS))]
    made += on(SETSOCKOPT, *buffers, allow, refuse(0))  # without effect: a socket counts with its default size
    if sockets:
        families = [(EQUAL, len(FAMILIES) - index, 0, family) for index, family in enumerate(FAMILIES)]
        made += on(SOCKET, (LOAD, 0, 0, 16), *families, refuse(errno.EAFNOSUPPORT), allow)
    else:
        made += on(SOCKET, refuse(errno.EACCES))
    return [*made, allow]
