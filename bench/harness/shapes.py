"""Shape files: bench/shapes/SET.csv, or any file of that form.

    # comment
    m,n,k,batch,dtype,note            the columns: the family's, in any order; note is free text
    1 16 512,4096,4096,1,bf16,text    a blank-separated field is one shape for each of its values

Which columns a family has, and what they must be, is its adapter's to say.
"""
from __future__ import annotations

import csv
import itertools
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "shapes"


class BadOption(Exception):
    """An option that cannot be; the text names it, its value and what is allowed."""


def sets() -> list[str]:
    """The names of the sets."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def find(name: str) -> Path:
    """The file of a set, or the file of that name."""
    if name in sets():
        return FOLDER / f"{name}.csv"
    if Path(name).is_file():
        return Path(name)
    raise BadOption(f"--shapes {name}: must be a file, or one of {' '.join(sets())}")


def read(path: Path) -> list[dict[str, str]]:
    """One dictionary a shape, columns that are empty left out. BadOption names the line."""
    numbered = [(number, line) for number, line in
                enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
                if line.strip() and not line.startswith("#")]
    fields = list(csv.reader(line for _, line in numbered))
    shapes = []
    for (number, _), values in zip(numbered[1:], fields[1:]):
        if len(values) != len(fields[0]):
            raise BadOption(f"--shapes {path}: line {number}: {len(values)} fields: "
                            f"must be {len(fields[0])}, {','.join(fields[0])}")
        shapes += expand(dict(zip(map(str.strip, fields[0]), map(str.strip, values))))
    if not shapes:
        raise BadOption(f"--shapes {path}: has no shapes: must be a header line and one a shape")
    return shapes


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
