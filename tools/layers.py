#!/usr/bin/env python3
"""Checks every #include of the tree against the layout that docs/ARCHITECTURE.md draws.

    tools, bench, examples -> include                       (and their own folder)
    tests                  -> include, jit, cache, tools, templates/*/*_cases.def; the device code
                              of tests/gpu: templates/common
    jit                    -> include, jit, cache           jit/cpu and jit/cuda: not each other;
                                                            the rest of jit: neither of them
    templates, host code   -> include, its own folder, templates/common
    templates, device code -> its own folder, templates/common; no system header
    cache                  -> cache
    include                -> include

jit, cache and include name no family: a generated <quern/FAMILY.h> is not for them, but for a header
that is named like a folder of templates/ and stands for all of its families. Which outside
headers a folder may use stands in OUTSIDE. Prints file:line for each edge that is not allowed and
exits 1 if there is one.
"""
import functools
import os
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCE = (".c", ".h", ".cu", ".cuh")
FOLDERS = ("include", "jit", "cache", "templates", "tools", "bench", "examples", "tests")

# Headers of other projects: prefix -> folders that may use them.
OUTSIDE = {
    "sqlite3.h": ("cache", "tools/report_data.c", "tests"),
    "xxhash.h": ("cache", "jit"),
    "zlib.h": ("cache",),
    "llvm-c/": ("jit/cpu",),
    "jansson.h": ("tools", "tests"),
    "check.h": ("tests",),
    "omp.h": ("jit", "bench", "tests"),
}
LIBC = set(
    """alloca argp assert complex ctype cpuid dirent dlfcn elf errno fcntl fenv float fnmatch ftw
    getopt glob immintrin inttypes iso646 libgen limits link locale malloc math poll pthread pwd
    regex sched semaphore setjmp signal spawn stdalign stdarg stdatomic stdbool stddef stdint stdio
    stdlib stdnoreturn string strings syslog termios tgmath threads time uchar unistd wchar wctype
    x86intrin arpa/inet asm/hwcap linux/futex linux/perf_event linux/prctl net/if
    sys/auxv sys/eventfd sys/file sys/ioctl sys/mman sys/mount sys/prctl sys/random sys/resource sys/sendfile
    sys/socket sys/stat sys/statfs sys/statvfs sys/syscall sys/sysinfo sys/time sys/types sys/uio
    sys/un sys/utsname sys/vfs sys/wait""".split()
)


def sources():
    for folder in FOLDERS:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                if name.endswith(SOURCE):
                    yield os.path.join(parent, name)


def is_device(path):
    """Embedded in the library and compiled at run time. A header is not where a .c goes with it."""
    return path.endswith(("_cpu.c", ".cu", ".cuh")) or (
        path.endswith(".h") and not os.path.exists(path[:-2] + ".c"))


def under(path, *folders):
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


@functools.lru_cache(None)
def families():
    return {name[:-4] for _, _, files in os.walk("templates") for name in files
            if name.endswith(".def") and not name.endswith("_cases.def")}


def resolve(includer, name):
    """The path in the tree that an #include of `name` reaches, or None."""
    if name.startswith("quern/") and name[6:-2] in families():
        return "generated/" + name
    roots = ["include", "."]
    if under(includer, "templates", "tests"):
        roots.append("templates")
    for root in [os.path.dirname(includer)] + roots:
        path = os.path.normpath(os.path.join(root, name))
        if os.path.exists(path):
            return path
    return None


def allows_outside(includer, name):
    if under(includer, "templates") and is_device(includer):
        return False
    for prefix, folders in OUTSIDE.items():
        if name.startswith(prefix):
            return under(includer, *folders)
    return name.endswith(".h") and name[:-2] in LIBC


def allows_inside(includer, target):
    folder = includer.split("/")[0]
    if folder == "templates":
        own = "/".join(includer.split("/")[:2])
        shared = ("templates/common", own)
        return under(target, *shared) or not is_device(includer) and (
            under(target, "include", "generated"))
    if folder == "jit":
        backends = [b for b in ("jit/cpu", "jit/cuda") if not under(includer, b)]
        return under(target, "include", "jit", "cache") and not under(target, *backends)
    if folder == "tests":
        if under(includer, "tests/gpu") and is_device(includer):
            return under(target, "templates/common", "tests/gpu")
        return under(target, "include", "generated", "jit", "cache", "tools", "tests") or (
            target.endswith("_cases.def"))
    if folder == "include" and os.path.isdir("templates/" + os.path.basename(includer)[:-2]):
        return under(target, "include", "generated")
    if folder in ("cache", "include"):
        return under(target, folder)
    return under(target, "include", "generated", folder)


def edges(path):
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            match = INCLUDE.match(line)
            if match:
                yield number, match[1], match[2]


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    files = checked = wrong = 0
    for path in sources():
        files += 1
        for number, quote, name in edges(path):
            checked += 1
            target = resolve(path, name)
            if target is None and path.startswith("tests/") and name == "all_cases.def":
                continue  # made by the build
            fine = allows_inside(path, target) if target else (
                quote == "<" and allows_outside(path, name))
            if not fine:
                wrong += 1
                print(f"{path}:{number}: must not include {target or name}")
    print(f"layers: {checked} includes in {files} files, {wrong} not allowed")
    return wrong != 0


if __name__ == "__main__":
    sys.exit(main())
