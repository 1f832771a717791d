"""A C++ project finds the library with CMake, links it and trains: cpp/examples against what pip
installed and against `cmake --install`."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyngp
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "cpp" / "examples"
PROGRAMS = ("train_from_buffers", "train_from_buffers_static")
OLDEST_CMAKE = (3, 24)


def run(*command: object, cwd: Path | None = None) -> str:
    """Output of a command that must succeed; its whole output is in the failure otherwise."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    shown = " ".join(str(part) for part in command)
    assert result.returncode == 0, f"{shown}\nexited with {result.returncode}:\n{result.stdout}"
    return result.stdout


def executables(name: str, folder_constant: str) -> list[str]:
    """Where a build tool may be: the PyPI package of that name, then PATH."""
    found = []
    try:
        package = importlib.import_module(name)
        found.append(str(Path(getattr(package, folder_constant)) / name))
    except (ImportError, AttributeError):
        pass
    on_path = shutil.which(name)
    return found + ([on_path] if on_path else [])


@pytest.fixture(scope="module")
def cmake() -> str:
    compiler = os.environ.get("CXX", "").split()[:1]
    if not any(shutil.which(c) for c in [*compiler, "c++", "g++", "clang++"]):
        pytest.skip("there is no C++ compiler")
    for candidate in executables("cmake", "CMAKE_BIN_DIR"):
        # What PATH names may be a shim without a program behind it, or too old.
        try:
            output = subprocess.run([candidate, "--version"], capture_output=True, text=True).stdout
        except OSError:
            continue
        version = re.search(r"cmake version (\d+)\.(\d+)", output)
        if version and (int(version[1]), int(version[2])) >= OLDEST_CMAKE:
            return candidate
    pytest.skip("there is no CMake 3.24 or newer (pip install cmake ninja)")


@pytest.fixture(scope="module")
def generator() -> list[str]:
    """Ninja where it works, else CMake's default."""
    for candidate in executables("ninja", "BIN_DIR"):
        try:
            works = subprocess.run([candidate, "--version"], capture_output=True).returncode == 0
        except OSError:
            continue
        if works:
            return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={candidate}"]
    return []


def build_and_run_examples(cmake: str, configure: list[str], build: Path) -> None:
    run(cmake, "-S", EXAMPLES, "-B", build, *configure)
    run(cmake, "--build", build, "--config", "Release", "--parallel", "2")
    for name in PROGRAMS:
        folder = build / "Release" if (build / "Release").is_dir() else build
        output = run(folder / name, build / f"{name}.ingp", cwd=build)
        assert "UNEXPECTED" not in output
        psnr = re.search(r"held-out view: PSNR (\S+) dB", output)
        assert psnr and 26 < float(psnr[1]) < 60, output
        assert (build / f"{name}.ingp").stat().st_size > 10_000


def config_files(cmake_dir: Path) -> list[Path]:
    files = sorted(cmake_dir.glob("*.cmake"))
    names = {f.name for f in files}
    assert {"ngpConfig.cmake", "ngpConfigVersion.cmake", "ngpTargets.cmake"} <= names, names
    return files


def test_examples_with_the_pip_installation(cmake, generator, tmp_path):
    configure = [*generator, f"-Dngp_DIR={pyngp.get_cmake_dir()}"]
    build_and_run_examples(cmake, configure, tmp_path / "build")

    # The package must not ask for a C compiler: the example's project has C++ only.
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert re.search(r"^CMAKE_CXX_COMPILER:", cache, re.M)
    assert not re.search(r"^CMAKE_(C|CUDA)_COMPILER:", cache, re.M)
    found = re.search(r"^ngp_DIR:[A-Z]+=(.*)$", cache, re.M)
    assert found and Path(found[1]).samefile(pyngp.get_cmake_dir()), "another ngp was found"


def test_package_of_the_pip_installation_is_relocatable():
    """Nothing refers to where pip built it: that folder is gone."""
    cmake_dir = Path(pyngp.get_cmake_dir())
    package = cmake_dir.parents[2]
    assert (package / "include" / "ngp" / "ngp.h").is_file()
    for file in config_files(cmake_dir):
        text = file.read_text()
        assert "pip-build-env" not in text, file
        assert str(ROOT) not in text, file
        # Any absolute path would be one of the build; the files find their own from where they are.
        absolute = re.findall(r"""["';](/[\w.+-]+/[^"';\s]*)""", re.sub(r"(?m)^\s*#.*$", "", text))
        assert not absolute, (file, absolute)
    # A wheel has no links: one file a library, or each name is a copy.
    shared = [f.name for f in cmake_dir.parents[1].glob("libngp.*") if f.suffix != ".a"]
    assert len(shared) == 1, shared


@pytest.mark.slow  # builds the library: a minute or two
def test_examples_with_cmake_install(cmake, generator, tmp_path):
    build, prefix = tmp_path / "library", tmp_path / "prefix"
    options = [f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DPython_EXECUTABLE={sys.executable}"]
    run(
        cmake,
        "-S",
        ROOT,
        "-B",
        build,
        *generator,
        "-DNGP_CUDA=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
        *options,
    )
    run(cmake, "--build", build, "--parallel", "2")
    run(cmake, "--install", build)
    [config] = prefix.rglob("ngpConfig.cmake")
    for file in config_files(config.parent):
        assert str(tmp_path) not in file.read_text(), file
        assert str(ROOT) not in file.read_text(), file

    # A prefix can be moved before it is used; the build folder is not needed any more.
    moved = prefix.rename(tmp_path / "moved")
    shutil.rmtree(build)
    build_and_run_examples(cmake, [*generator, f"-DCMAKE_PREFIX_PATH={moved}"], tmp_path / "examples")
