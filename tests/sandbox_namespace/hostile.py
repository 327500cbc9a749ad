"""Tries what a hostile program would, with the system calls themselves, and prints one line for each
attempt: its name, and `allowed` or the name of the error. Arguments: an abstract socket of the host,
a path of the host, the id of a process of another user inside."""
import ctypes, errno, fcntl, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
HOST_SOCKET, HOST_PATH, OTHER = sys.argv[1], sys.argv[2], int(sys.argv[3])
PAGE = ctypes.create_string_buffer(4096)


def call(number, *args):
    ctypes.set_errno(0)
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_void_p(a) if isinstance(a, int)
             else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def attempt(name, work):
    try:
        said = work()
        print(name, said if isinstance(said, str) else "allowed", flush=True)
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error.errno), flush=True)


def vector():
    """One piece of memory, eight bytes of ours."""
    return (ctypes.c_ulong * 2)(ctypes.addressof(PAGE), 8)


def write(path, text="1"):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path):
    with open(path, "rb") as file:
        return "empty" if not file.read(16) else "allowed"


def child(work):
    """In a process of its own, since success would change this one."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            work()
        except OSError as error:
            code = error.errno
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(abs(code), "")


# mounts and roots
attempt("mount", lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, 0))
attempt("bind", lambda: call(165, b"/etc", b"/mnt", b"", 4096, 0))
attempt("mount_cgroup", lambda: call(165, b"none", b"/mnt", b"cgroup2", 0, 0))
attempt("remount", lambda: call(165, b"none", b"/sys", b"", 32, 0))
attempt("umount", lambda: call(166, b"/proc/kcore", 0))
attempt("pivot_root", lambda: call(155, b"/", b"/mnt"))
attempt("chroot", lambda: child(lambda: call(161, b"/tmp")))
attempt("fsopen", lambda: call(430, b"tmpfs", 0))
attempt("open_tree", lambda: call(428, -100, b"/", 1))
attempt("open_tree_attr", lambda: call(467, -100, b"/", 1, PAGE, 32))
attempt("move_mount", lambda: call(429, -100, b"/etc", -100, b"/mnt", 0))
attempt("mount_setattr", lambda: call(442, -100, b"/sys", 0, PAGE, 32))
attempt("open_by_handle_at", lambda: call(304, -100, PAGE, 0))
attempt("name_to_handle_at", lambda: call(303, -100, b"/", PAGE, PAGE, 0))
attempt("quotactl", lambda: call(179, 0x800007 << 8, b"/dev/vda", 0, PAGE))
attempt("acct", lambda: call(163, b"/tmp/acct"))
attempt("fanotify_init", lambda: call(300, 0, 0))
# namespaces
for name, flag in [("user", 0x10000000), ("mnt", 0x20000), ("pid", 0x20000000), ("net", 0x40000000),
                   ("ipc", 0x8000000), ("uts", 0x4000000), ("cgroup", 0x2000000), ("time", 0x80)]:
    attempt("unshare_" + name, lambda: child(lambda: call(272, flag)))
    if name != "time":
        attempt("clone_" + name, lambda: call(56, flag | 17, 0, 0, 0, 0) or os._exit(0))
attempt("clone3", lambda: call(435, PAGE, 64))
attempt("setns", lambda: call(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0))
attempt("setns_of_pid_1", lambda: call(308, call(434, 1, 0), 0x20000))
# other processes
for name, pid in [("pid_1", 1), ("other_user", OTHER)]:
    attempt("ptrace_" + name, lambda: call(101, 0x4206, pid, 0, 0))
    attempt("process_vm_readv_" + name, lambda: call(310, pid, vector(), 1, vector(), 1, 0))
    attempt("pidfd_getfd_" + name, lambda: call(438, call(434, pid, 0), 0, 0))
    attempt("kcmp_" + name, lambda: call(312, pid, os.getpid(), 1, 0, 0))
for file in ["environ", "mem", "maps", "auxv", "stack", "syscall"]:
    attempt("proc_1_" + file, lambda: read("/proc/1/" + file))
for link in ["root", "cwd", "exe", "ns/mnt"]:
    attempt("proc_1_" + link.replace("/", "_"), lambda: os.readlink("/proc/1/" + link))
attempt("proc_1_fd", lambda: os.listdir("/proc/1/fd"))
attempt("proc_1_root_enter", lambda: os.listdir("/proc/1/root/"))
attempt("proc_1_oom", lambda: write("/proc/1/oom_score_adj", "1000"))
attempt("oom_below_the_guest", lambda: write("/proc/self/oom_score_adj", "-1"))
attempt("kill_pid_1", lambda: os.kill(1, 9) or ("survived" if os.path.exists("/proc/1") else "dead"))
# kernel interfaces
attempt("keyctl", lambda: call(250, 0, -3, 1))
attempt("add_key", lambda: call(248, b"user", b"x", b"y", 1, -3))
attempt("request_key", lambda: call(249, b"user", b"x", 0, -3))
attempt("bpf", lambda: call(321, 5, PAGE, 64))
attempt("perf_event_open", lambda: call(298, PAGE, 0, -1, -1, 0))
attempt("userfaultfd", lambda: call(323, 1))
attempt("userfaultfd_device", lambda: os.open("/dev/userfaultfd", os.O_RDWR))
attempt("io_uring_setup", lambda: call(425, 1, PAGE))
attempt("io_uring_enter", lambda: call(426, 0, 0, 0, 0, 0, 0))
attempt("io_uring_register", lambda: call(427, 0, 0, 0, 0))
attempt("init_module", lambda: call(175, PAGE, 1, b""))
attempt("finit_module", lambda: call(313, 0, b"", 0))
attempt("delete_module", lambda: call(176, b"x", 0))
attempt("kexec_load", lambda: call(246, 0, 0, 0, 0))
attempt("kexec_file_load", lambda: call(320, 0, 0, 0, 0, 0))
attempt("reboot", lambda: call(169, 0xFEE1DEAD, 672274793, 0, 0))
attempt("swapon", lambda: call(167, b"/tmp/x", 0))
attempt("swapoff", lambda: call(168, b"/tmp/x"))
attempt("syslog", lambda: call(103, 3, PAGE, 16))
attempt("dmesg", lambda: read("/dev/kmsg"))
attempt("proc_kmsg", lambda: read("/proc/kmsg"))
attempt("proc_kcore", lambda: read("/proc/kcore"))
attempt("proc_keys", lambda: read("/proc/keys"))
attempt("proc_kallsyms", lambda: read("/proc/kallsyms"))
attempt("iopl", lambda: call(172, 3))
attempt("ioperm", lambda: call(173, 0, 1, 1))
attempt("modify_ldt", lambda: call(154, 0, PAGE, 16))
attempt("vhangup", lambda: call(153))
attempt("mbind", lambda: call(237, 0, 4096, 0, 0, 0, 0))
# the machine's settings
attempt("settimeofday", lambda: call(164, PAGE, 0))
attempt("clock_settime", lambda: call(227, 0, PAGE))
attempt("adjtimex", lambda: call(159, PAGE))
attempt("clock_adjtime", lambda: call(305, 0, PAGE))
attempt("sethostname", lambda: call(170, b"x", 1))
attempt("setdomainname", lambda: call(171, b"x", 1))
for path in ["kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/randomize_va_space",
             "vm/drop_caches", "net/ipv4/ip_forward", "fs/file-max", "kernel/ns_last_pid"]:
    attempt("sysctl_" + path.replace("/", "_"), lambda: write("/proc/sys/" + path))
attempt("sysrq_trigger", lambda: write("/proc/sysrq-trigger", "h"))
attempt("sys_write", lambda: os.open("/sys/x", os.O_CREAT | os.O_WRONLY))
attempt("sys_cpu_write", lambda: write("/sys/devices/system/cpu/online"))
attempt("cgroup_files", lambda: os.listdir("/sys/fs/cgroup"))
attempt("release_agent", lambda: write("/sys/fs/cgroup/memory/release_agent", "/x"))
attempt("cgroup_procs", lambda: write("/sys/fs/cgroup/cgroup.procs", "0"))
attempt("setrlimit_raise", lambda: call(302, 0, 7, (ctypes.c_ulong * 2)(1 << 20, 1 << 20), 0))
attempt("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("nice_below_zero", lambda: os.nice(-5) if os.nice(0) < 0 else os.setpriority(0, 0, -5))
attempt("ioprio_realtime", lambda: call(251, 1, 0, 1 << 13))
# devices
for name, kind, major, minor in [("disk", 0o60600, 254, 0), ("mem", 0o20600, 1, 1),
                                 ("kmsg", 0o20600, 1, 11), ("null", 0o20600, 1, 3)]:
    attempt("mknod_" + name, lambda: os.mknod("/tmp/node-" + name, kind, os.makedev(major, minor)))
for device in ["vda", "mem", "kvm", "fuse", "net/tun", "loop-control", "loop0", "vsock", "hwrng"]:
    attempt("dev_" + device.replace("/", "_"), lambda: os.open("/dev/" + device, os.O_RDONLY))
attempt("tiocsti", lambda: fcntl.ioctl(os.openpty()[1], 0x5412, b"x"))
attempt("tiolinux", lambda: fcntl.ioctl(os.openpty()[1], 0x541C, b"\x02"))
attempt("tiocsetd", lambda: fcntl.ioctl(os.openpty()[1], 0x5423, (16).to_bytes(4, "little")))
# sockets
for name, family, kind, protocol in [
    ("raw", 2, 3, 1), ("raw6", 10, 3, 58), ("ping", 2, 2, 1), ("packet", 17, 3, 0), ("vsock", 40, 1, 0),
    ("alg", 38, 5, 0), ("bluetooth", 31, 3, 0), ("can", 29, 3, 1), ("xdp", 44, 3, 0), ("tipc", 30, 1, 0),
    ("key", 15, 3, 2), ("rds", 21, 5, 0), ("smc", 43, 1, 0), ("nfc", 39, 5, 0), ("x25", 9, 5, 0),
    ("netfilter", 16, 3, 12), ("audit", 16, 3, 9), ("uevent", 16, 3, 15), ("generic", 16, 3, 16),
    ("sock_diag", 16, 3, 4), ("xfrm", 16, 3, 6), ("connector", 16, 3, 11), ("sctp", 2, 1, 132),
    ("mptcp", 2, 1, 262), ("dccp", 2, 6, 33), ("udplite", 2, 2, 136)]:
    attempt("socket_" + name, lambda: call(41, family, kind, protocol))
for name, family, kind in [("tipc", 30, 5), ("vsock", 40, 1), ("alg", 38, 5)]:
    attempt("socketpair_" + name, lambda: call(53, family, kind, 0, PAGE))
attempt("host_abstract_socket", lambda: socket.socket(socket.AF_UNIX).connect("\0" + HOST_SOCKET))
attempt("host_path", lambda: os.stat(HOST_PATH))
attempt("link_down", lambda: fcntl.ioctl(socket.socket(), 0x8914, b"eth0".ljust(16, b"\0") + bytes(24)))
# rights
attempt("setuid_root", lambda: child(lambda: os.setuid(0)) if os.getuid() else "root")
attempt("setcap", lambda: os.setxattr("/tmp", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12)))
attempt("trusted_xattr", lambda: os.setxattr("/tmp", "trusted.overlay.opaque", b"y"))
attempt("immutable", lambda: fcntl.ioctl(os.open("/tmp", os.O_RDONLY), 0x40086602, (16).to_bytes(8, "little")))
attempt("personality", lambda: call(135, 0xFFFFFFFF))
attempt("x32", lambda: call(0x40000000 + 39))
