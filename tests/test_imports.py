"""Each module imports only from those above it, and what the page needs first does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "freemask"
ORDER = (
    "errors wording verdict ffmpeg pictures probing video preview validation specs presets gallery explorer jobs "
    "prompts spans features trace weights reach backbone attention ddim masks mmc plan fusion fusing memory metrics "
    "edit files run toyworld bench cli page"
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
                assert name in ORDER, f"{path.name} imports an unknown room {name}"
                assert ORDER.index(name) < ORDER.index(parts[0]), f"{parts[0]} imports {name}, which stands below it"


def test_the_first_rooms_do_without_torch():
    code = "import sys, freemask.video, freemask.presets, freemask.gallery, freemask.jobs, freemask.prompts"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True, cwd=PACKAGE.parent)


def test_every_module_lists_its_names():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__main__.py" and path.stat().st_size:
            assert "__all__" in path.read_text(), path
