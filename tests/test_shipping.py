"""What a host uploads: the files of a Space, and configurations that name no machine."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

ROOT = Path(__file__).resolve().parent.parent
# a path from a disk's root, such as /home/me/x, C:\x or ~/x; the page's own addresses have one part
ABSOLUTE = re.compile(r"^(/[\w.-]+/|[A-Za-z]:[\\/]|~/|file:)")


def tracked():
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("this is no checkout of the repository")
    return [name for name in told.stdout.splitlines() if (ROOT / name).exists()]


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *strings(inner)) if isinstance(key, str) else strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def runs_code(node):
    """Whether a call may run what a file or a visitor says."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if called == "torch.load":
        return given.get("weights_only") != "True"
    loads = called in ("eval", "exec", "os.system", "yaml.load", "yaml.full_load", "yaml.unsafe_load")
    return loads or called.startswith("pickle.") or given.get("shell") == "True" or given.get("allow_pickle") == "True"


def test_nothing_is_read_that_can_run_code():
    for bad in (
        "torch.load(x)",
        "yaml.load(x)",
        "pickle.loads(x)",
        "np.load(x, allow_pickle=True)",
        "run(x, shell=True)",
    ):
        assert runs_code(ast.parse(bad, mode="eval").body)
    files = [ROOT / "app.py", *(ROOT / "freemask").rglob("*.py")]
    for file in files:
        found = [node.lineno for node in ast.walk(ast.parse(file.read_text())) if runs_code(node)]
        assert not found, f"{file.name}, lines {found}"
    assert len(files) > 100


def test_no_configuration_names_a_path_of_the_machine_that_wrote_it():
    assert ABSOLUTE.match("/home/me/run/vae") and not ABSOLUTE.match("a/b") and not ABSOLUTE.match("/edit")
    files = [ROOT / name for name in tracked() if name.endswith((".json", ".yaml"))]
    assert len(files) > 20
    for file in files:
        told = json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
        if "tokenizer" in file.parts:  # whose words are what text is made of
            told = told.get("_name_or_path", "") if isinstance(told, dict) else told
        assert not [value for value in strings(told) if ABSOLUTE.match(value)], file


def test_a_space_gets_what_is_tracked_and_nothing_else():
    """`hf upload` leaves out its default patterns here, and the Hub what the uploaded .gitignore names."""
    (line,) = (one for one in (ROOT / "README.md").read_text().splitlines() if "hf upload" in one)
    assert "hf upload OWNER/NAME . --repo-type space" in line
    names = tracked()
    sent = list(filter_repo_objects([*names, ".git/config"], ignore_patterns=DEFAULT_IGNORE_PATTERNS))
    assert sent == names and {".gitignore", "README.md", "app.py", "requirements.txt"} < set(sent)
    local = [".venv/bin/python", "out/blue-car/edited.mp4", "runs/unet-clips.pt", "freemask/__pycache__/edit.pyc"]
    told = subprocess.run(["git", "check-ignore", "--no-index", *local], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.splitlines() == local
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *names], cwd=ROOT, capture_output=True, text=True)
    assert not ignored.stdout
