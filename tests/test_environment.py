"""pyproject.toml, requirements.lock and environment.yml say the same."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

from cellaug.book.chapter import project_root

import yaml
from packaging.requirements import Requirement

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    """The locked version of each package, for this Python."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonical(requirement.name)] = pin.version
    return found


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_satisfies_what_the_project_asks_for():
    locked = pins()
    extras = PROJECT["optional-dependencies"].values()
    for text in PROJECT["dependencies"] + [text for extra in extras for text in extra]:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        assert canonical(requirement.name) in locked, text
        assert requirement.specifier.contains(locked[canonical(requirement.name)]), text


def test_what_is_installed_is_what_is_locked():
    for name, version in pins().items():
        assert metadata.version(name) == version, name


def test_conda_gets_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["name"] == PROJECT["name"]
    *packages, pip = conda["dependencies"]
    assert pip == {"pip": ["-c requirements.lock", "-e ."]}
    asked = {name: rest for name, _, rest in (package.partition(" ") for package in packages)}
    assert set(asked) == {"python", "make", "pip"}
    assert asked["python"] == PROJECT["requires-python"]


def test_the_fixed_tools_are_there():
    names = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    fixed = "jupyterlab jupytext papermill tensorflow keras opencv-python seaborn scikit-learn"
    assert set(fixed.split()) <= names
    assert "nbval" in {
        canonical(Requirement(t).name) for t in PROJECT["optional-dependencies"]["test"]
    }


def test_no_registry_is_named():
    for name in ("requirements.lock", "environment.yml", "pyproject.toml", "Makefile"):
        assert "://" not in (ROOT / name).read_text(), name


def test_a_folder_called_like_the_package_does_not_hide_it(tmp_path):
    """As where the clone lies beside a script."""
    (tmp_path / "cellaug").mkdir()
    (tmp_path / "three_lines.py").write_text("import cellaug\nprint(cellaug.load_generator)\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "three_lines.py"]
    subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True)
