"""Programs that try to leave the sandbox, to damage what is outside, to stay, or to use more than their limits.

``@NAME@`` stands for what ``attacked`` has put outside: a process, files, sockets, a key. A program that gets anywhere
prints ``BREACH``; ``attacked`` looks at the outside as well.
"""

# ruff: noqa: E501 (programs stand on few lines)

_TRY = """
import ctypes, os, signal, socket, struct, subprocess, sys, threading, time, resource, mmap
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, *a, good=lambda r: True):
    try: r = what(*a)
    except (OSError, ValueError, EOFError, OverflowError) as e: return None
    if good(r): print("BREACH", getattr(what, "__name__", what), a, repr(r)[:80], flush=True)
    return r
def call(number, *a):
    r = libc.syscall(number, *a)
    if r < 0: raise OSError(ctypes.get_errno(), "")
    return r
"""

NETWORK = {
    "TCP to this machine": "attempt(socket.create_connection, ('127.0.0.1', @TCP@), 1)",
    "TCP to the world": "attempt(socket.create_connection, ('1.1.1.1', 53), 1)",
    "TCP to the metadata service": "attempt(socket.create_connection, ('169.254.169.254', 80), 1)",
    "UDP to this machine": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'@KEY@', ('127.0.0.1', @UDP@))",
    "a name is looked up": "attempt(socket.gethostbyname, 'example.com')",
    "raw packets": "attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "packets of the device": "attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)",
    "sockets of the hypervisor": "attempt(socket.socket, 40, socket.SOCK_STREAM)",
    "sockets of the kernel's cryptography": "attempt(socket.socket, 38, socket.SOCK_SEQPACKET)",
    "a unix socket by path": "s = socket.socket(socket.AF_UNIX); attempt(s.connect, '@UNIX@')",
    "a unix socket by abstract name": "s = socket.socket(socket.AF_UNIX); attempt(s.connect, '\\0@ABSTRACT@')",
    "a datagram by abstract name": "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); attempt(s.sendto, b'x', '\\0@ABSTRACT@')",
    "io_uring": "b = ctypes.create_string_buffer(256); attempt(call, 425, 8, b)",
    "curl and other programs": "attempt(subprocess.run, ['/bin/sh', '-c', 'exec 3<>/dev/tcp/127.0.0.1/@TCP@ || exec curl -s http://127.0.0.1:@TCP@'], good=lambda r: r.returncode == 0)",
}

PROCESSES = {
    "SIGKILL to the parent": "os.kill(os.getppid(), 9); time.sleep(0.3)",
    "SIGSTOP to the parent": "attempt(os.kill, os.getppid(), signal.SIGSTOP, good=lambda r: False); time.sleep(0.3)",
    "SIGKILL to everybody": "os.kill(-1, 9); time.sleep(0.3)",
    "SIGKILL to process 1": "attempt(os.kill, 1, 9, good=lambda r: False)",
    "SIGKILL to a process outside": "os.kill(@OTHER@, 9)",
    "SIGKILL to the product": "os.kill(@PRODUCT@, 9)",
    "SIGSTOP to a process outside": "os.kill(@OTHER@, signal.SIGSTOP)",
    "SIGTERM to every number": "for pid in range(2, 70000):\n    if pid != os.getpid():\n        try: os.kill(pid, 15)\n        except OSError: pass",
    "a signal by process descriptor": "fd = os.pidfd_open(@OTHER@); signal.pidfd_send_signal(fd, 9)",
    "a signal by the owner of a pipe": "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9); fcntl.fcntl(r, fcntl.F_SETOWN, @OTHER@)\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\nos.write(w, b'x'); time.sleep(0.1)",
    "limits of a process outside": "attempt(resource.prlimit, @OTHER@, resource.RLIMIT_NOFILE, (1, 1))",
    "priority of a process outside": "attempt(os.setpriority, os.PRIO_PROCESS, @OTHER@, 19)",
    "priority of all of this user's": "attempt(os.setpriority, os.PRIO_USER, os.getuid(), 19, good=lambda r: False)",
    "processors of a process outside": "attempt(os.sched_setaffinity, @OTHER@, {0})",
    "ptrace": "attempt(call, 101, 16, @OTHER@, 0, 0)",
    "memory of a process outside": "attempt(open, '/proc/@OTHER@/mem', 'rb+')",
    "memory of the parent": "attempt(open, f'/proc/{os.getppid()}/mem', 'rb+')",
    "descriptors of a process outside": "p = attempt(os.pidfd_open, @PRODUCT@, good=lambda r: False)\nif p: attempt(call, 438, p, 0, 0)",
    "environment of the product": "attempt(lambda: open('/proc/@PRODUCT@/environ').read(), good=lambda r: '@KEY@' in r)",
    "environments of all": "for p in os.listdir('/proc'):\n    if p.isdigit(): attempt(lambda: open(f'/proc/{p}/environ').read(), good=lambda r: '@KEY@' in r)",
    "the environment": "attempt(lambda: str(os.environ), good=lambda r: '@KEY@' in r)",
    "another program's letter": "import glob\nfor p in glob.glob('/proc/[0-9]*/fd/*'):\n    if not p.startswith((f'/proc/{os.getpid()}/', '/proc/self')): attempt(lambda: os.open(p, os.O_RDONLY))",
}

FILES = {
    "a file that only this user reads": "attempt(open, '@SECRET@')",
    "a file that everybody reads": "attempt(open, '@OPEN@')",
    "the project's .env": "attempt(open, '@ENV@')",
    "the folders above the descriptors": "for fd in range(64):\n    here = fd\n    for level in range(12):\n        try: here = os.open('..', os.O_RDONLY, dir_fd=here)\n        except OSError:\n            try: here = os.open('..', os.O_PATH, dir_fd=here)\n            except OSError: break\n        for name in ('.env', '.bashrc', '.ssh/id_rsa', '@OPEN@'[1:], '@ENV@'[1:]): attempt(lambda: os.open(name, os.O_RDONLY, dir_fd=here))",
    "the root of another process": "for p in (1, os.getppid(), @OTHER@, @PRODUCT@): attempt(open, f'/proc/{p}/root@OPEN@'); attempt(open, f'/proc/{p}/cwd/../../../../../..@OPEN@')",
    "a symbolic link": "os.symlink('@OPEN@', 'link'); attempt(open, 'link')",
    "a hard link": "attempt(os.link, '@OPEN@', 'link')",
    "writing outside": "attempt(open, '@OPEN@', 'a'); attempt(open, '@FOLDER@/new', 'w')",
    "a file is cut": "attempt(os.truncate, '@OPEN@', 0)",
    "a file is removed": "attempt(os.remove, '@OPEN@')",
    "a file is moved": "attempt(os.rename, '@OPEN@', 'mine')",
    "the mode of a file": "attempt(os.chmod, '@SECRET@', 0o666, good=lambda r: False)",
    "the mode of a folder": "attempt(os.chmod, '@FOLDER@', 0, good=lambda r: False)",
    "the times of a file": "attempt(os.utime, '@OPEN@', (1, 1), good=lambda r: False)",
    "the attributes of a file": "attempt(os.setxattr, '@OPEN@', b'user.x', b'x', good=lambda r: False)",
    "packages and interpreter": "for p in [sys.prefix, sys.base_prefix, *sys.path]:\n    attempt(open, p + '/mine.py', 'w'); attempt(os.chmod, p, 0o777, good=lambda r: os.stat(p).st_mode & 0o777 == 0o777)",
    "left in /tmp and the like": "for p in ('/tmp', '/var/tmp', '/dev/shm', '/run', '/run/lock', '/dev/mqueue', '/'):\n    attempt(open, p + '/@MARK@', 'w', good=lambda r: False)",
    "a folder elsewhere": "for p in ('/tmp', '/var/tmp', '/dev/shm'): attempt(os.makedirs, p + '/@MARK@/a', good=lambda r: False)",
    "devices": "for p in ('/dev/mem', '/dev/kmem', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/fuse', '/dev/tty', '/dev/console', '/dev/ptmx'): attempt(open, p, 'rb')\nattempt(os.mknod, 'disk', 0o60600, 0x800)",
    "switches of the kernel": "for p in ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sys/vm/overcommit_memory', '/proc/sysrq-trigger', '/proc/self/oom_score_adj', '/sys/power/state'): attempt(open, p, 'w', good=lambda r: 'self' not in p)",
    "System V segments, queues and semaphores": "attempt(libc.shmget, 0, 1 << 20, 0o1666, good=lambda r: r >= 0); attempt(libc.msgget, 0, 0o1666, good=lambda r: r >= 0); attempt(libc.semget, 0, 4, 0o1666, good=lambda r: r >= 0)",
    "System V segments of others": "attempt(libc.shmctl, @SEGMENT@, 0, 0, good=lambda r: r >= 0); attempt(libc.shmat, @SEGMENT@, 0, 0, good=lambda r: r >= 0)",
    "POSIX message queues": "rt = ctypes.CDLL('librt.so.1'); attempt(rt.mq_open, b'/@MARK@', 0o102, 0o666, None, good=lambda r: r >= 0)",
    "keys of the kernel": "attempt(call, 248, b'user', b'@MARK@', b'x', 1, -4)",
    "folders nested 3,000 deep": "for i in range(3000):\n    os.mkdir('a'); os.chdir('a')",
    "folders nested deep at home and in TMPDIR": "for top in (os.environ['HOME'], os.environ['TMPDIR']):\n    os.chdir(top)\n    for i in range(1500): os.mkdir('d' * 50); os.chdir('d' * 50)",
    "folders that nobody may enter": "os.makedirs('a/b/c'); open('a/b/c/f', 'w').close(); os.chmod('a/b/c', 0); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
    "the folders around are removed": "import shutil\nfor p in ('.', '..', '../..', os.environ['HOME'], os.environ['TMPDIR']): shutil.rmtree(p, ignore_errors=True)\nattempt(os.rmdir, os.getcwd(), good=lambda r: False)",
    "many files and odd names": "for i in range(2000): open(b'\\xff\\n' + str(i).encode(), 'w').close()",
}

PRIVILEGES = {
    "namespaces": "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000): attempt(libc.unshare, flag, good=lambda r: r == 0)",
    "namespaces by clone": "attempt(call, 56, 0x10000000 | 17, 0, 0, 0, 0)",
    "namespaces by clone3": "b = ctypes.create_string_buffer(struct.pack('11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)); attempt(call, 435, b, 88)",
    "the program unshare": "attempt(subprocess.run, ['unshare', '-Ur', 'id', '-u'], good=lambda r: r.returncode == 0)",
    "mounts": "attempt(libc.mount, b'tmpfs', b'.', b'tmpfs', 0, b'', good=lambda r: r == 0); attempt(libc.umount2, b'/proc', 2, good=lambda r: r == 0)",
    "chroot": "os.mkdir('c'); attempt(os.chroot, 'c')",
    "becoming root": "attempt(os.setuid, 0); attempt(os.setresuid, 0, 0, 0); attempt(os.setgroups, [0])",
    "set-user-id programs": "for p in ('/usr/bin/su', '/usr/bin/sudo', '/usr/bin/passwd', '/usr/bin/mount'):\n    if os.path.exists(p): attempt(subprocess.run, [p, '--help'], good=lambda r: False)\nprint([l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0].split()[1] == '1' or 'BREACH')",
    "capabilities": "print('BREACH' if int(open('/proc/self/status').read().split('CapEff:')[1].split()[0], 16) else 'none')",
    "the second set of system calls": "attempt(call, 0x40000000 + 319, b'x', 0)",
    "bpf, performance counters, page faults": "attempt(call, 321, 0, 0, 0); attempt(call, 298, 0, 0, 0, 0, 0); attempt(call, 323, 0)",
}

STAYING = {
    "a daemon in a session of its own": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\ntime.sleep(0.2)",
    "a daemon that hops": "if os.fork() == 0:\n    os.setsid()\n    end = time.time() + 20\n    while time.time() < end:\n        if os.fork(): os._exit(0)\ntime.sleep(0.3)",
    "a daemon that hops by threads and exec": "if os.fork() == 0:\n    os.setsid()\n    os.execv('/bin/sh', ['sh', '-c', 'n=0; while [ $n -lt 2000 ]; do n=$((n+1)); (sleep 5 & ) ; done # @MARK@'])\ntime.sleep(0.3)",
    "twenty that start one another": "def work():\n    while True:\n        if os.fork() == 0: work()\n        time.sleep(0.01)\nfor _ in range(20):\n    try:\n        if os.fork() == 0: work()\n    except OSError: pass\ntime.sleep(0.3)",
    "a daemon that stops its supervisor": "if os.fork() == 0:\n    os.setsid(); parent = os.getppid()\n    for _ in range(50):\n        for p in (1, parent, os.getppid()):\n            try: os.kill(p, signal.SIGSTOP)\n            except OSError: pass\n        time.sleep(0.05)\nos._exit(0)",
    "a fork bomb": "while True:\n    try: os.fork()\n    except OSError: time.sleep(0.05)",
    "a fork bomb that ignores signals": "for s in range(1, 32):\n    if s not in (9, 17, 19): signal.signal(s, signal.SIG_IGN)\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "try:\n    while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nexcept RuntimeError: print('no more')",
    "a channel held open": "if os.fork() == 0: time.sleep(60)\nos._exit(0)",
    "channels closed": "os.closerange(0, 256); time.sleep(0.2)",
    "a program that never ends": "for s in (15, 2, 1, 24, 14): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "endless output": "while True: os.write(1, b'x' * 65536)",
    "noise on every descriptor": 'for fd in range(256):\n    try: os.write(fd, b\'{"how": "exited", "code": 0}\\n\' * 100)\n    except OSError: pass',
}

_FILL = "for i in range(0, len(m), 4096): m[i] = 1"
_FORKED = """
def fill(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20); s.setblocking(False)
    try:
        while True: s.send(bytes(65536))
    except BlockingIOError: return s
children = [os.fork() for _ in range(4)]
children += [os.fork() for _ in range(1)]
if True:
"""
MEMORY = {
    "many processes": "for _ in range(8):\n    if os.fork() == 0: m = bytearray(os.urandom(1)) * (160 << 20); time.sleep(60)\ntime.sleep(60)",
    "shared mappings": f"for _ in range(8):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, 200 << 20)\n        {_FILL}\n        time.sleep(60)\ntime.sleep(3)",
    "shared mappings of /dev/zero": f"for _ in range(8):\n    if os.fork() == 0:\n        m = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 200 << 20)\n        {_FILL}\n        time.sleep(60)\ntime.sleep(3)",
    "mappings that others have filled": f"kept = []\nfor _ in range(10):\n    m = mmap.mmap(-1, 100 << 20); kept.append(m)\n    if os.fork() == 0:\n        {_FILL}\n        os._exit(0)\n    os.wait()\ntime.sleep(3)",
    "files in memory": "kept = []\nfor i in range(40):\n    fd = os.memfd_create(str(i)); kept.append(fd)\n    for _ in range(50): os.write(fd, bytes(1 << 20))\ntime.sleep(3)",
    "System V segments": "for _ in range(20):\n    i = libc.shmget(0, 100 << 20, 0o1666)\n    libc.shmat.restype = ctypes.c_void_p\n    a = libc.shmat(i, 0, 0)\n    if a not in (None, ctypes.c_void_p(-1).value): ctypes.memset(a, 1, 100 << 20); libc.shmdt(ctypes.c_void_p(a))\ntime.sleep(3)",
    "files in /dev/shm and TMPDIR": "n = 0\nfor p in ('/dev/shm', '/tmp', os.environ['TMPDIR'], '.'):\n    for i in range(20):\n        try: open(f'{p}/@MARK@{i}', 'wb').write(bytes(50 << 20))\n        except OSError: pass\ntime.sleep(1)",
    "deleted files": "kept = []\nfor i in range(40):\n    try:\n        f = open('f', 'wb'); os.unlink('f'); kept.append(f); f.write(bytes(30 << 20)); f.flush()\n    except OSError: pass\ntime.sleep(1)",
    "copied after a fork": "m = bytearray(300 << 20)\nfor _ in range(8):\n    if os.fork() == 0:\n        for i in range(0, len(m), 4096): m[i] = 1\n        time.sleep(60)\ntime.sleep(60)",
    "tables of pages": "import mmap\nfor _ in range(20):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, 450 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n        for i in range(0, len(m), 4096): m[i] = 1\n        time.sleep(60)\ntime.sleep(60)",
    "buffers of sockets": f"{_FORKED}    kept, end = [], time.time() + 4\n    while time.time() < end:\n        try: kept += [fill(s) for s in socket.socketpair()]\n        except OSError: time.sleep(0.1)\n    os._exit(0)\nos.wait()",
    "buffers of sockets that are hidden": f"libc.prctl(4, 0, 0, 0, 0)\n{_FORKED}    kept, end = [], time.time() + 4\n    while time.time() < end:\n        try: kept += [fill(s) for s in socket.socketpair()]\n        except OSError: time.sleep(0.1)\n    os._exit(0)\nos.wait()",
    "buffers of connections": f"{_FORKED}    kept, end = [], time.time() + 4\n    while time.time() < end:\n        try:\n            server = socket.create_server(('127.0.0.1', 0)); a = socket.create_connection(server.getsockname()); kept += [fill(a), fill(server.accept()[0])]\n        except OSError: time.sleep(0.1)\n    os._exit(0)\nos.wait()",
    "one process": "kept = []\nwhile True: kept.append(bytearray(16 << 20))",
}

GROUPS = {
    "network": NETWORK,
    "processes": PROCESSES,
    "files": FILES,
    "privileges": PRIVILEGES,
    "staying": STAYING,
    "memory": MEMORY,
}
ATTACKS = {name: _TRY + source for group in GROUPS.values() for name, source in group.items()}
