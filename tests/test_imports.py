"""Each room imports only from those above it, and what the page needs first does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "freemask"
FLOORS = (
    "errors validation clips words families steps presets bends changes settings masks methods pictures jobs toyworld"
    " bench batch cli page"
).split()


def test_modules_import_only_upwards():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level != len(parts):
                continue
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            for name in names:
                assert name in FLOORS, f"{path.name} imports an unknown room {name}"
                assert FLOORS.index(name) < FLOORS.index(parts[0]), f"{parts[0]} imports {name}, which stands below it"


def test_the_first_rooms_do_without_torch():
    first = "clips.video clips.preview words.prompts families.reach settings pictures.word_maps jobs.worker jobs.check"
    code = f"import sys, {', '.join(f'freemask.{room}' for room in first.split())}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_every_module_lists_its_names():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__main__.py" and len(ast.parse(path.read_text()).body) > 1:
            assert "__all__" in path.read_text(), path
