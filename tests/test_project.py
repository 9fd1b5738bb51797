"""The project's own files agree with each other, and hold nothing of the machine they were written on."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RANGES = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
PYTHONS = ("3.11", "3.12")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=options.pop("cwd", ROOT), capture_output=True, text=True, **options)


def project_files() -> list[Path]:
    """Every file that git has or would add."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(file: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements" / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def locked(python: str) -> dict[str, str]:
    """Name and version of what lock.txt installs on one Python version."""
    environment = {"python_version": python}
    entries = [r for r in requirements("lock.txt") if r.marker is None or r.marker.evaluate(environment)]
    return {normal(r.name): str(r.specifier).removeprefix("==") for r in entries}


# Split so that this file does not hold what it looks for.
FORBIDDEN = {
    "a package index's host": "|".join([r"pypi\." + "org", "python" + r"hosted\.", r"download\.py" + r"torch\."]),
    "an option that names an index": "--(extra-)?index" + "-url|--find" + "-links",
    "a path of one machine": r"(?<![\w.$}<*-])/(work|root|home|Users|opt)" + r"/(?!\*)[\w.]",
    "an installation of the wrong distribution": r"pip install [^\n`]*\bmetabook" + r"(?=[\s`'\"]|$)",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what):
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found


def test_forbidden_patterns_find_what_they_are_for():
    assert re.search(FORBIDDEN["a package index's host"], "https://pypi." + "org/simple")
    assert re.search(FORBIDDEN["an option that names an index"], "pip install --index" + "-url x")
    assert re.search(FORBIDDEN["a path of one machine"], 'open("/home' + '/ada/x")')
    assert not re.search(FORBIDDEN["a path of one machine"], "https://example.com/home/page and book/home/x")
    assert re.search(FORBIDDEN["an installation of the wrong distribution"], "run `pip install -q meta" + "book`")
    assert not re.search(FORBIDDEN["an installation of the wrong distribution"], "pip install metabook-tutorial")


@pytest.mark.parametrize("name", ["metabook/data/store.py", "results/some_record.json", "book/_static/book-light.png"])
def test_git_keeps(name):
    assert run("git", "check-ignore", "--quiet", name).returncode != 0


@pytest.mark.parametrize("name", [".venv/bin/python", "_build/html/index.html", "runs/x/model.safetensors"])
def test_git_ignores(name):
    if run("git", "rev-parse").returncode:
        pytest.skip("not a git checkout")
    assert run("git", "check-ignore", "--quiet", name).returncode == 0


def test_one_name_and_one_version():
    import metabook

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["name"] == "metabook-tutorial"
    assert PROJECT["version"] == metabook.__version__ == citation["version"]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_range(python):
    versions = locked(python)
    wanted = [*map(Requirement, RANGES), *requirements("lock.in")]
    assert not [str(r) for r in wanted if not r.specifier.contains(versions.get(normal(r.name), "0.dev0"))]


def test_the_lock_is_exact_and_free_of_platforms():
    entries = requirements("lock.txt")
    assert entries
    for entry in entries:
        assert re.fullmatch(r"==[\w.]+", str(entry.specifier)), f"{entry} is no exact version, or one of one platform"
        assert not re.match(r"nvidia-|cuda-|triton$", entry.name), f"{entry} belongs to one build of torch"


def test_the_package_asks_for_ranges():
    assert not [r for r in RANGES if "==" in r]
    upper = [Requirement(r).name for r in RANGES if "<" in r]
    assert upper == ["jupyter-book"], "an upper bound makes a reader's environment go back: only with a reason"


def test_make_lists_its_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    shown = run("make").stdout
    assert {"setup", "notebooks", "book", "test", "serve", "clean"} <= set(targets)
    assert [line.split()[1] for line in shown.splitlines()] == targets
    assert shown == run("make", "help").stdout


def test_setup_names_what_is_missing(tmp_path):
    for name in ("requirements", "Makefile", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    env = {**os.environ, "PYTHON": "no-such-python"}
    done = run("sh", "requirements/setup.sh", ".venv/.stamp", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert re.fullmatch(r"setup: no CPython 3\.11 or 3\.12 found \(tried: no-such-python\); .*\n", done.stderr)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("half", ["nothing", "an alias of the interpreter"])
def test_setup_never_installs_outside_of_a_venv(tmp_path, half):
    # An interruption can leave .venv/bin/python without pyvenv.cfg: it is then the interpreter that it points to,
    # and pip would install there. `python` and `pip` stand in for the real ones and say what they are asked.
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    python = tmp_path / "python"
    real = sys._base_executable
    lines = ["#!/bin/sh", f'echo "$@" >> {tmp_path}/calls', f'[ "$1" = -c ] && exec {real} "$@"', "exit 3", ""]
    python.write_text("\n".join(lines))
    python.chmod(0o755)
    if half != "nothing":
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").symlink_to(python)
    env = {**os.environ, "PYTHON": str(python)}
    assert run("sh", "requirements/setup.sh", ".venv/.stamp", cwd=tmp_path, env=env).returncode == 3
    calls = (tmp_path / "calls").read_text()
    assert "-m venv --clear .venv" in calls
    assert "pip" not in calls


def test_the_wheel_holds_the_package_and_the_records(tmp_path):
    for name in ("metabook", "results"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "results" / "a_record.json").write_text("{}")
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next((tmp_path / "dist").glob("metabook_tutorial-*.whl"))) as wheel:
        names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "metabook").rglob("*.py")}
    assert modules | {"metabook/_results/a_record.json"} <= names
    assert {"metabook/data/intents.txt", "metabook/data/intents.sha256"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"metabook", "metabook_tutorial"}


CHECKS = {
    "ruff check": ["ruff", "check", "--quiet", "."],
    "ruff format": ["ruff", "format", "--check", "--quiet", "."],
    "codespell": ["codespell", "--quiet-level=3"],
    "mypy": ["mypy", "--no-error-summary"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_style(name):
    tool, *arguments = CHECKS[name]
    if importlib.util.find_spec(tool) is None and importlib.util.find_spec(f"{tool}_lib") is None:
        pytest.skip(f"{tool} is not installed")
    done = run(str(Path(sys.executable).with_name(tool)), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}, "a job asks for more by itself where it must"
    for name, job in workflow["jobs"].items():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), f"{name}: a step either runs or uses"
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_continuous_integration_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert run("bash", "-n", ".ci/run").returncode == 0


def test_the_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert links
    assert len(pictures) == 2
    assert not [link for link in [*links, *pictures] if not (ROOT / link).exists()]


def test_the_program_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    short = program.replace("steps=300", "steps=2").replace("tasks=200", "tasks=8")
    assert short.count("steps=2") == short.count("tasks=8") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(short, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d %", capsys.readouterr().out.strip().splitlines()[-1])
    assert (tmp_path / "protonet.safetensors").exists()


def test_the_commands_of_the_readme_exist():
    from typer.main import get_command

    from metabook.cli import app

    commands = re.findall(r"^metabook (.+)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for line in commands:
        words, command = line.split(), get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
