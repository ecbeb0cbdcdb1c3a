"""Checks the imports of mdssd/ against the order of its rooms, and draws them.

    python tools/architecture.py          # print each fault; the exit status is 1 if there is one
    python tools/architecture.py --draw   # write docs/architecture.svg

A room is a folder of mdssd/, or a file directly in it. ROOMS lists them from the bottom up: a
module may import from its own room and from the rooms below.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DRAWING = ROOT / "docs" / "architecture.svg"
# Rooms on one line do not know each other.
ROOMS = (
    ("version", "names"),
    ("system",),
    ("ops",),
    ("priors", "testing"),
    ("models",),
    ("metrics", "drawing"),
    ("data",),
    ("weights",),
    ("zoo",),
    ("detection",),
    ("evaluation",),
    ("bulk",),
    ("inspection",),
    ("quantization",),
    ("training",),
    ("integrations", "info"),
    ("mdssd",),  # mdssd/__init__.py, the public names
    ("cli",),
    ("__main__",),
)
# Packages that a function may import: optional ones, and those that take long to load.
OPTIONAL = (
    "fsspec",
    "matplotlib",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pyarrow",
    "pycocotools",
    "rasterio",
    "ray",
    "supervision",
    "timm",
    "torchvision",
    "triton",
)
# The files that import modules by name, when they are first used.
BY_NAME = (
    "mdssd/__init__.py",
    "mdssd/cli/__init__.py",
    "mdssd/ops/_dispatch.py",
    "mdssd/ops/_modules.py",
    "mdssd/integrations/_patch.py",
    "mdssd/integrations/mmdetection.py",
)
# The most lines of a file, and of a function including its docstring. Triton's kernels and the
# table of test cases are exempt from the first limit.
FILE_LINES, FUNCTION_LINES = 400, 80
LONG_FILES = ("mdssd/ops/triton/", "mdssd/testing.py")


class Import(NamedTuple):
    """One imported module: where, from which module, and whether only for type checkers."""

    place: str  # file:line
    source: str
    target: str
    in_function: bool
    for_types: bool


def files() -> list[Path]:
    return sorted((ROOT / "mdssd").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "mdssd"


def read_imports() -> list[Import]:
    """Every import in mdssd/. `from a import b` counts as a.b if that is a module, else as a."""
    modules = {module_name(path) for path in files()}
    found = []
    for path in files():
        for node, in_function, for_types in _import_nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                joined = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name in modules else str(node.module) for name in joined]
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            found += [
                Import(place, module_name(path), target, in_function, for_types)
                for target in dict.fromkeys(targets)
            ]
    return found


def _import_nodes(
    tree: ast.AST, in_function: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, in_function, for_types
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _import_nodes(node, in_function or function, for_types or types)


def faults() -> list[str]:
    """One line for each import, file or function that breaks a rule; empty if none does."""
    imports = read_imports()
    return [
        *_order_faults(imports),
        *_circle_faults(imports),
        *_function_faults(imports),
        *_by_name_faults(),
        *_length_faults(),
    ]


def _own(imports: Iterable[Import]) -> Iterator[Import]:
    return (i for i in imports if i.target.split(".")[0] == "mdssd")


def _order_faults(imports: Iterable[Import]) -> Iterator[str]:
    height = {room: k for k, row in enumerate(ROOMS) for room in row}
    for path in files():
        if room_of(module_name(path)) not in height:
            yield f"{path.relative_to(ROOT)}: its room is not in ROOMS of tools/architecture.py"
            return
    for one in _own(imports):
        lower, upper = room_of(one.target), room_of(one.source)
        if lower != upper and height[lower] >= height[upper]:
            yield f"{one.place}: {upper} imports {one.target}, which is not a room below it"


def _circle_faults(imports: Iterable[Import]) -> Iterator[str]:
    edges = defaultdict(set)
    for one in _own(imports):
        if one.source != one.target:
            edges[one.source].add(one.target)
    finished: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> Iterator[str]:
        if module in path:
            yield "circle of imports: " + " -> ".join((*path[path.index(module) :], module))
        elif module not in finished:
            for target in sorted(edges[module]):
                yield from walk(target, (*path, module))
            finished.add(module)

    for module in sorted(edges):
        yield from walk(module, ())


def _function_faults(imports: Iterable[Import]) -> Iterator[str]:
    for one in imports:
        optional = any(f"{one.target}.".startswith(f"{name}.") for name in OPTIONAL)
        if one.in_function and not optional:
            yield f"{one.place}: a function imports {one.target}, which is not in OPTIONAL"


def _by_name_faults() -> Iterator[str]:
    for path in files():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.endswith(("import_module", "__import__")) and name not in BY_NAME:
                yield f"{name}:{node.lineno}: imports a module by its name, but is not in BY_NAME"


def _length_faults() -> Iterator[str]:
    for path in files():
        name, text = str(path.relative_to(ROOT)), path.read_text()
        lines = text.count("\n")
        if lines > FILE_LINES and not name.startswith(LONG_FILES):
            yield f"{name}: {lines} lines, expected at most {FILE_LINES}"
        if name.startswith(LONG_FILES):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    where = f"{name}:{node.lineno}: {node.name}"
                    yield f"{where} has {lines} lines, expected at most {FUNCTION_LINES}"


# --- the drawing -------------------------------------------------------------------------------

WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 1180, 118, 208, 78


def needed_edges() -> dict[str, set[str]]:
    """Which room imports which, without the edges that follow from those by way of a third room."""
    edges = defaultdict(set)
    height = {room: k for k, row in enumerate(ROOMS) for room in row}
    for one in _own(read_imports()):
        upper, lower = room_of(one.source), room_of(one.target)
        # Almost every room takes one of these two, which say nothing about the structure.
        if height[upper] > height[lower] and lower not in ("version", "names"):
            edges[upper].add(lower)

    def reach(room: str) -> set[str]:
        return {room}.union(*(reach(below) for below in edges[room])) if edges[room] else {room}

    return {
        room: {b for b in below if not any(b in reach(other) for other in below - {b})}
        for room, below in list(edges.items())
    }


def draw() -> str:
    """The rooms and their imports as SVG, the highest room on top."""
    edges = needed_edges()
    rooms = {room_of(module_name(path)) for path in files()} - {"version", "names", "__main__"}
    ranks = _ranks(rooms, edges)
    height = max(ranks.values())
    # A long edge passes each row between at a point of its own, so that it runs into no box.
    rows: list[list[str]] = [[] for _ in range(height + 1)]
    chains = []
    for room in sorted(rooms):
        rows[ranks[room]].append(room)
        for below in sorted(edges.get(room, ())):
            passed = range(ranks[room] - 1, ranks[below], -1)
            points = [f"{room}>{below}@{level}" for level in passed]
            for level, point in zip(passed, points, strict=True):
                rows[level].append(point)
            chains.append([room, *points, below])
    at = _place(rows, chains)
    total = (height + 1) * ROW + 8
    left, right = min(at.values()) - 16, max(at.values()) + 16
    left = min(left, *(at[room] - BOX_WIDTH / 2 - 16 for room in rooms))
    right = max(right, *(at[room] + BOX_WIDTH / 2 + 16 for room in rooms))
    top = {name: 24 + (height - level) * ROW for level, row in enumerate(rows) for name in row}
    lines = [_edge([(at[name], top[name], name in rooms) for name in chain]) for chain in chains]
    boxes = [_box(room, at[room], top[room]) for room in sorted(rooms)]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="{left:g} 0 {right - left:g} {total}" '
            'font-family="Helvetica, Arial, sans-serif">',
            "<!-- Written by tools/architecture.py from the imports. -->",
            f'<rect x="{left:g}" width="100%" height="100%" fill="#ffffff"/>',
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#7a8594"/></marker>'
            "</defs>",
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def _ranks(rooms: Iterable[str], edges: dict[str, set[str]]) -> dict[str, int]:
    """The row of each room, 0 at the bottom: as close below those that import it as possible."""
    ranks: dict[str, int] = {}

    def lowest(room: str) -> int:
        if room not in ranks:
            ranks[room] = 1 + max((lowest(below) for below in edges.get(room, ())), default=-1)
        return ranks[room]

    for room in sorted(sorted(rooms), key=lowest, reverse=True):
        above = [ranks[upper] - 1 for upper in rooms if room in edges.get(upper, ())]
        ranks[room] = min(above, default=ranks[room])
    return ranks


def _place(rows: list[list[str]], chains: list[list[str]]) -> dict[str, float]:
    """The x of every room and point: each row is ordered by the mean place of its neighbours."""
    near = defaultdict(list)
    for chain in chains:
        for a, b in zip(chain, chain[1:], strict=False):
            near[a].append(b)
            near[b].append(a)
    at = {name: k / max(1, len(row) - 1) for row in rows for k, name in enumerate(row)}
    for _ in range(30):
        for order in (rows, rows[::-1]):
            for row in order:
                mean = {
                    n: sum(at[m] for m in near[n]) / len(near[n]) if near[n] else at[n] for n in row
                }
                row.sort(key=lambda name: (mean[name], name))
                spread = _spread(row, [mean[name] * WIDTH for name in row])
                at |= {name: x / WIDTH for name, x in zip(row, spread, strict=True)}
    return {name: round(x * WIDTH, 1) for name, x in at.items()}


def _spread(row: list[str], wanted: list[float]) -> list[float]:
    """Places near the wanted ones, in order, far enough apart and inside the drawing."""
    half = [16.0 if "@" in name else BOX_WIDTH / 2 + 8 for name in row]
    places: list[float] = []
    for k, want in enumerate(wanted):
        least = places[-1] + half[k - 1] + half[k] if k else half[k]
        places.append(max(want, least))
    most = WIDTH - 0.0
    for k in reversed(range(len(row))):
        places[k] = min(places[k], most - half[k])
        most = places[k] - half[k]
    return places


def _edge(points: list[tuple[float, float, bool]]) -> str:
    (x, y, _), *others = points
    path = f"M{x:g} {y + BOX_HEIGHT:g}"
    y += BOX_HEIGHT
    for x2, y2, is_room in others:
        middle = (y + y2) / 2
        path += f"C{x:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
        x, y = x2, y2
        if not is_room:
            y += BOX_HEIGHT
            path += f"L{x:g} {y:g}"
    style = 'fill="none" stroke="#7a8594" stroke-width="1.4" marker-end="url(#head)"'
    return f'<path d="{path}" {style}/>'


def _box(room: str, x: float, y: float) -> str:
    words = _summary(room).split()
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 30:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    left = x - BOX_WIDTH / 2
    name = "mdssd" if room == "mdssd" else f"mdssd.{room}"
    text = "".join(
        f'<text x="{x:g}" y="{y + 36 + 14 * k:g}" font-size="11" fill="#3b4552" '
        f'text-anchor="middle">{escape(line)}</text>'
        for k, line in enumerate(lines)
    )
    return (
        f'<rect x="{left:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" '
        f'fill="#eef4fb" stroke="#3d6ea5"/><text x="{x:g}" y="{y + 19:g}" font-size="14" '
        f'font-weight="bold" fill="#1d3b5c" text-anchor="middle">{name}</text>{text}'
    )


def _summary(room: str) -> str:
    """The first sentence of the room's docstring, which the drawing shows."""
    folder = ROOT / "mdssd" / ("" if room == "mdssd" else room)
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")


def main() -> int:
    if sys.argv[1:] == ["--draw"]:
        DRAWING.write_text(draw())
        return 0
    found = faults()
    print("\n".join(found) or "no import, file or function breaks the rules")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
