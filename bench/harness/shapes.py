"""Shape files: bench/shapes/FAMILY/SET.csv, or any file of that form.

    # comment
    m,n,k,batch,dtype,note            the columns: the family's, in any order; note is free text
    1 16 512,4096,4096,1,bf16,text    a blank-separated field is one shape for each of its values

Which columns a family has, and what they must be, is its adapter's to say.
"""
from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Callable

Params = dict[str, "int | str"]
Columns = dict[str, bool]  # the family's columns: whether a file must have it
FOLDER = Path(__file__).resolve().parent.parent / "shapes"


class BadOption(Exception):
    """An option that cannot be; the text names it, its value and what is allowed."""


def sets(family: str) -> list[str]:
    """The names of a family's sets."""
    return sorted(path.stem for path in (FOLDER / family).glob("*.csv"))


def find(family: str, name: str) -> Path:
    """The file of a set, or the file of that name."""
    if name in sets(family):
        return FOLDER / family / f"{name}.csv"
    if Path(name).is_file():
        return Path(name)
    raise BadOption(f"--shapes {name}: must be a file, or one of {' '.join(sets(family))}")


def read(path: Path, columns: Columns, make: Callable[[dict[str, str]], Params]) -> list[Params]:
    """make() of every shape, columns that are empty left out. BadOption names the line."""
    numbered = lines_of(path)
    fields = [[value.strip() for value in values]
              for values in csv.reader(line for _, line in numbered)]
    check_header(path, fields[0] if fields else [], columns)
    shapes: list[Params] = []
    for (number, _), values in zip(numbered[1:], fields[1:]):
        try:
            if len(values) != len(fields[0]):
                raise BadOption(f"{len(values)} fields: must be {len(fields[0])}, "
                                f"{','.join(fields[0])}")
            shapes += map(make, expand(dict(zip(fields[0], values))))
        except BadOption as failure:
            raise BadOption(f"--shapes {path}: line {number}: {failure}") from None
    if not shapes:
        raise BadOption(f"--shapes {path}: has no shapes: must be a header line and one a shape")
    return shapes


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines that say something, numbered from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        raise BadOption(f"--shapes {path}: must be text in UTF-8: {failure}") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.startswith("#")]


def check_header(path: Path, header: list[str], columns: Columns) -> None:
    """Every column once, known, and none that is needed missing."""
    known = [*columns, "note"]
    for name in header:
        if name not in known or header.count(name) > 1:
            raise BadOption(f"--shapes {path}: column {name}: must be one of {' '.join(known)}, "
                            "and there once")
    for name, is_needed in columns.items():
        if is_needed and name not in header:
            raise BadOption(f"--shapes {path}: the column {name} is missing")


def expand(row: dict[str, str]) -> list[dict[str, str]]:
    """Every combination of the values of blank-separated fields; the note is left whole."""
    lists = [[value] if name == "note" else value.split() or [""] for name, value in row.items()]
    return [{name: value for name, value in zip(row, values) if value}
            for values in itertools.product(*lists)]


def sample(shapes: list[dict[str, int | str]], count: int) -> list[dict[str, int | str]]:
    """`count` of them, evenly spread over the list, the first and the last included."""
    if count >= len(shapes):
        return shapes
    step = (len(shapes) - 1) / max(1, count - 1)
    return [shapes[round(place * step)] for place in range(count)]
