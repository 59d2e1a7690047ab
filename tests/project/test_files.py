"""What the files of the repository say, and what they must not say."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import queuestream
from queuestream import handlers

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]

# Written in two parts, so that this file does not contain what it looks for.
MACHINE_PATHS = ["/" + "root/", "/" + "work/", "/" + "tmp/w/", "/" + "opt/pypi"]
REGISTRY_HOSTS = ["pypi." + "org", "pythonhosted." + "org", "npmjs." + "org", "deb.debian" + ".org"]


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    names = subprocess.check_output([git, "ls-files", "-z"], cwd=ROOT, encoding="utf-8")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("text", MACHINE_PATHS + REGISTRY_HOSTS)
def test_no_file_names_a_machine_or_a_registry(text: str) -> None:
    wanted = text.encode()
    assert [path for path in tracked_files() if wanted in path.read_bytes()] == []


def test_the_changelog_lists_the_public_names() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = changelog.split("## [Unreleased]", 1)[1].split("\n## ", 1)[0]
    for name in ("MixedQueue", "stream()", "TokenStream", *handlers.__all__):
        assert f"`{name}`" in unreleased
    assert "`queuestream demo`" in unreleased
    assert "`queuestream run`" in unreleased


@pytest.mark.parametrize("module", [queuestream, handlers])
def test_the_reference_has_an_entry_for_each_public_name(module: ModuleType) -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    entries = re.findall(r"^::: queuestream\.(?:handlers\.)?(\w+)$", page, re.MULTILINE)
    assert set(module.__all__) <= set(entries)


def test_the_version_comes_from_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    try:
        installed = importlib.metadata.version("queuestream")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here")
    assert versions == [installed]


def test_the_package_is_marked_as_typed() -> None:
    assert queuestream.__file__ is not None
    assert (Path(queuestream.__file__).parent / "py.typed").is_file()
