#!/usr/bin/env python3
"""Fails when an object file reaches the kernel, a clock or entropy around the kernel seam.

Every system call of the library goes through penstock/os/kernel.h, so that a test can count it,
fail it or replace the whole kernel. This check runs `nm -u` on each object of the library, the
simulation and the command, and fails when one other than those in SEAM_SOURCES refers to a symbol
of the deny list.

Usage: check_kernel_seam.py [--nm NM] [--source ROOT] BUILD_DIR
       check_kernel_seam.py [--nm NM] --objects A.o B.o ...
The build directory is one without interprocedural optimisation (asan, debug, clang, ...): its
objects must be readable by nm. exit status: 0 clean, 1 violations, 2 the check cannot run.
"""

import argparse
import pathlib
import re
import subprocess
import sys

# The real kernel lives here, and nowhere else.
SEAM_SOURCES = ("src/os/linux_kernel.cpp",)

# What a folder may use besides: {"src/app/": {"symbol": "reason"}}. None so far.
ALSO_ALLOWED = {"src/app/": {}}

# What to do instead, and the symbols that it stands for.
DENIED = {
    "call penstock::Kernel (os/kernel.h)": """
        socket socketpair bind listen accept accept4 connect shutdown getsockopt setsockopt
        getsockname getpeername sockatmark isfdtype
        recv recvfrom recvmsg recvmmsg send sendto sendmsg sendmmsg
        sendfile sendfile64 splice tee vmsplice copy_file_range
        read pread pread64 readv preadv preadv2 preadv64 preadv64v2
        write pwrite pwrite64 writev pwritev pwritev2 pwritev64 pwritev64v2
        ioctl fcntl fcntl64 close close_range closefrom dup dup2 dup3
        epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
        poll ppoll ppoll64 select pselect
        eventfd eventfd_read eventfd_write signalfd timerfd_create timerfd_settime timerfd_gettime
        timer_create timer_settime timer_gettime setitimer getitimer alarm ualarm
        inotify_init inotify_init1 inotify_add_watch fanotify_init memfd_create pidfd_open
        open open64 openat openat64 openat2 creat creat64 pipe pipe2 mkfifo
        opendir fdopendir fopen fopen64 fdopen freopen freopen64 tmpfile mkstemp mkdir mkdirat rmdir
        unlink unlinkat rename renameat renameat2 link symlink lseek lseek64
        stat stat64 fstat fstat64 lstat lstat64 fstatat fstatat64 statx access faccessat
        ftruncate ftruncate64 truncate truncate64 fsync fdatasync
        getrlimit getrlimit64 setrlimit setrlimit64 prlimit prlimit64
        sigaction signal sigprocmask pthread_sigmask sigpending sigsuspend sigwait sigwaitinfo
        sigtimedwait sigqueue sigaltstack bsd_signal sysv_signal kill raise pthread_kill tgkill
        fork vfork _Fork execve execv execvp execvpe execl execlp execle posix_spawn posix_spawnp
        waitpid wait waitid wait3 wait4 system popen pclose daemon
        prctl getifaddrs if_nametoindex if_indextoname if_nameindex sethostname
        sched_setaffinity pthread_setaffinity_np
        aio_read aio_write lio_listio
    """,
    "call penstock::Kernel (os/kernel.h); if it is the futex inside std::atomic::wait, "
    "std::counting_semaphore, std::latch or std::barrier, wait on a std::condition_variable": """
        syscall
    """,
    "take the time from the loop or from penstock::Kernel (os/kernel.h)": """
        clock_gettime clock_getres clock_settime gettimeofday time ftime times clock timespec_get
        timespec_getres
        _ZNSt6chrono3_V212system_clock3nowEv _ZNSt6chrono3_V212steady_clock3nowEv
    """,
    "use a timer of the loop": """
        nanosleep clock_nanosleep usleep sleep pause
        _ZNSt11this_thread11__sleep_forENSt6chrono8durationIlSt5ratioILl1ELl1EEEENS1_IlS2_ILl1ELl1000000000EEEE
    """,
    "take entropy from penstock::Kernel (os/kernel.h)": """
        getrandom getentropy arc4random arc4random_buf arc4random_uniform rand srand random srandom
    """,
    "resolve names on the resolver's thread or with c-ares": """
        getaddrinfo getaddrinfo_a getnameinfo gethostbyname gethostbyname2 gethostbyname_r
        gethostbyname2_r gethostbyaddr gethostbyaddr_r getservbyname getservbyname_r
        getservbyport getservbyport_r res_query res_search __res_query __res_search
    """,
}

DENIED_PATTERNS = (
    (re.compile(r"_ZNSt13random_device"), "take entropy from penstock::Kernel (os/kernel.h)"),
    (re.compile(r"_ZNSt6chrono.*_clock3nowEv$"), "take the time from the loop or from "
                                                 "penstock::Kernel (os/kernel.h)"),
    (re.compile(r"_ZNSt11this_thread11__sleep_for"), "use a timer of the loop"),
    (re.compile(r"_*io_uring_"), "use the io_uring port of penstock::Kernel (os/kernel.h)"),
)

# liburing helpers that only fill memory.
HARMLESS = {"io_uring_get_sqe"}

ADVICE = {name: advice for advice, names in DENIED.items() for name in names.split()}


class CannotRun(Exception):
    """An object that cannot be read is no proof of innocence."""


def plain_name(symbol):
    """Strips version suffixes and the fortified and internal forms: __recv_chk@GLIBC_2.4 -> recv."""
    name = symbol.split("@")[0]
    if name in ADVICE or name in HARMLESS or name.startswith("_Z"):
        return name
    for pattern in (r"__(.+)_chk", r"__(.+?)_2", r"__isoc\d+_(.+)", r"__libc_(.+)", r"__(.+)_time64",
                    r"__(.+?)64_time64", r"__(.+)64", r"__(.+)"):
        match = re.fullmatch(pattern, name)
        if match and match[1] in ADVICE:
            return match[1]
    return name


def advice_for(symbol):
    """What to do instead of using this symbol, or None when it is allowed."""
    name = plain_name(symbol)
    if name in HARMLESS:
        return None
    if name in ADVICE:
        return ADVICE[name]
    for pattern, advice in DENIED_PATTERNS:
        if pattern.match(name):
            return advice
    return None


def undefined_symbols(nm, path):
    """The symbols that an object refers to and does not define."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CannotRun(f"{path} cannot be read ({error.strerror}); build first") from error
    without_ipo = "run on a build without interprocedural optimisation, such as the preset asan"
    if data[:4] in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
        raise CannotRun(f"{path} is LLVM bitcode; {without_ipo}")
    if data[:4] != b"\x7fELF":
        raise CannotRun(f"{path} is not an ELF object")
    if b".gnu.lto_" in data:
        raise CannotRun(f"{path} is an object for link-time optimisation; {without_ipo}")
    try:
        result = subprocess.run([nm, "-u", "--format=posix", str(path)], capture_output=True,
                                text=True, check=False)
    except OSError as error:
        raise CannotRun(f"{nm} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        raise CannotRun(f"nm failed on {path}: {result.stderr.strip()}")
    names = set()
    for line in result.stdout.splitlines():
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2 or fields[1] not in ("U", "w", "v"):
            raise CannotRun(f"nm said about {path} what is not understood: {line!r}")
        names.add(fields[0])
    return sorted(names)


def demangled(symbol):
    try:
        result = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=False)
        return result.stdout.strip() or symbol
    except OSError:
        return symbol


def belongs_to(path, source):
    """Whether an object was compiled from `source`: CMake names it <target>.dir/<source>.o."""
    return path.as_posix().endswith("/" + source + ".o")


def allowed_beside(path):
    for folder, symbols in ALSO_ALLOWED.items():
        if f".dir/{folder}" in path.as_posix():
            return symbols
    return {}


def objects_of(build, source):
    """The objects that the build system lists, after a check that no source is left out."""
    listing = build / "kernel_seam_objects.txt"
    if not listing.is_file():
        raise CannotRun(f"{listing} does not exist; configure with PENSTOCK_TESTS=ON")
    objects = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        if line.strip():
            path = pathlib.Path(line.strip())
            objects.append(path if path.is_absolute() else build / path)
    if source is not None:
        for path in sorted((source / "src").glob("*/*.cpp")):
            name = path.relative_to(source).as_posix()
            if name.startswith("src/app/") and not (source / "src/app/main.cpp").is_file():
                continue
            if not any(belongs_to(entry, name) for entry in objects):
                raise CannotRun(f"{name} has no object in {build}; build first")
    return objects


def check(nm, objects):
    """The violations, one line each."""
    if not objects:
        raise CannotRun("there is not one object file to look at")
    problems = []
    for path in objects:
        symbols = undefined_symbols(nm, path)
        if any(belongs_to(path, source) for source in SEAM_SOURCES):
            continue
        allowed = allowed_beside(path)
        for symbol in symbols:
            advice = advice_for(symbol)
            if advice and plain_name(symbol) not in allowed:
                problems.append(f"{path}: refers to {demangled(symbol)}; instead, {advice}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--source", type=pathlib.Path, help="root of the sources: none may lack an object")
    parser.add_argument("--objects", nargs="+", type=pathlib.Path)
    parser.add_argument("build", nargs="?", type=pathlib.Path)
    options = parser.parse_args()
    try:
        if (options.build is None) == (options.objects is None):
            raise CannotRun("name a build directory, or objects with --objects")
        objects = options.objects or objects_of(options.build, options.source)
        problems = check(options.nm, objects)
    except CannotRun as reason:
        print(f"check_kernel_seam: {reason}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    if problems:
        print(f"check_kernel_seam: {len(problems)} reference(s) around the kernel seam; only "
              f"{', '.join(SEAM_SOURCES)} may make them")
        return 1
    print(f"check_kernel_seam: {len(objects)} objects, none goes around the kernel seam")
    return 0


if __name__ == "__main__":
    sys.exit(main())
