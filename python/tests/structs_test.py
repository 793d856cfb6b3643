#!/usr/bin/env python3
"""Every ctypes struct and list has the sizes, offsets and values of the C headers."""

from __future__ import annotations

import ctypes
import subprocess

from common import FOLDER, ROOT, Case, main, quern

structs = quern._structs

HEAD = """#include <quern.h>
#include <quern/cache.h>
#include <quern/tune.h>
#include <stdio.h>
int main(void)
{
"""


def c_lines():
    """What the C program prints: of each struct and field, and of each number in a list."""
    yield 'printf("VERSION %s\\n", QUERN_VERSION);'
    for name, struct in structs.BY_C_NAME.items():
        yield f'printf("{name} %zu\\n", sizeof(struct {name}));'
        for field in (row[0].rstrip("_") for row in struct._fields_):
            yield (f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), '
                   f"sizeof(((struct {name} *)0)->{field}));")
    for constant in CONSTANTS:
        yield f'printf("{constant} %lld\\n", (long long)QUERN_{constant});'
    yield 'for (int i = 0; i < QUERN_DTYPE_COUNT; i++) printf("dtype%d %s %zu\\n", i,'
    yield "    quern_dtype_name(i), quern_dtype_bytes(i));"


CONSTANTS = {
    "MAX_PARAMS": structs.MAX_PARAMS, "MAX_RANK": structs.MAX_RANK, "MAX_STEPS": structs.MAX_STEPS,
    "REQUIRED": structs.REQUIRED, "SIZE": structs.SIZE, "CHOICE": structs.CHOICE,
    "DTYPE": structs.DTYPE, "FLAG": structs.FLAG, "REAL": structs.REAL,
    "ABSENT": structs.ABSENT, "IN": structs.IN, "OUT": structs.OUT, "INOUT": structs.INOUT,
    "LOG_OFF": structs.LOG_LEVELS.index("off"), "LOG_WARN": structs.LOG_LEVELS.index("warn"),
    "LOG_INFO": structs.LOG_LEVELS.index("info"), "LOG_DEBUG": structs.LOG_LEVELS.index("debug"),
    "CONFIG_GIVEN": structs.CONFIG_FROM.index("given"),
    "CONFIG_TUNED": structs.CONFIG_FROM.index("tuned"),
    "CONFIG_NEIGHBOUR": structs.CONFIG_FROM.index("neighbour"),
    "CONFIG_HEURISTIC": structs.CONFIG_FROM.index("heuristic"),
    "FROM_MEMORY": structs.ARTIFACT_FROM.index("memory"),
    "FROM_DISK": structs.ARTIFACT_FROM.index("disk"),
    "FROM_COMPILER": structs.ARTIFACT_FROM.index("compiled"),
}


def python_lines():
    yield f"VERSION {structs.VERSION}"
    for name, struct in structs.BY_C_NAME.items():
        yield f"{name} {ctypes.sizeof(struct)}"
        for row in struct._fields_:
            field = getattr(struct, row[0])
            yield f"{name}.{row[0].rstrip('_')} {field.offset} {field.size}"
    for constant, value in CONSTANTS.items():
        yield f"{constant} {value}"
    for i, dtype in enumerate(structs.DTYPES):
        yield f"dtype{i} {dtype} {structs.DTYPE_BYTES.get(dtype, 0)}"


class StructsTest(Case):
    maxDiff = None

    def test_layouts_and_numbers_are_those_of_the_headers(self):
        source, program = FOLDER / "layout.c", FOLDER / "layout"
        source.write_text(HEAD + "\n".join(c_lines()) + "\nreturn 0;\n}\n")
        library = quern.library_path()
        folder = library.rpartition("/")[0]
        subprocess.run(["cc", "-Werror", f"-I{ROOT / 'include'}", str(source), library, "-o",
                        str(program), f"-Wl,-rpath,{folder}"], check=True)
        told = subprocess.run([str(program)], check=True, text=True, capture_output=True)
        self.assertEqual(told.stdout.splitlines(), list(python_lines()))


if __name__ == "__main__":
    main()
