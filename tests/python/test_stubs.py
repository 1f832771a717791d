"""The type stub is what the module says of itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pyngp

from python import stubs

STUB = Path(__file__).parents[2] / "python" / "pyngp" / "_core.pyi"


def test_stub_is_current() -> None:
    """On a difference: python tests/python/stubs.py > python/pyngp/_core.pyi"""
    assert ast.dump(ast.parse(STUB.read_text())) == ast.dump(ast.parse(stubs.generate()))


def test_package_is_typed() -> None:
    package = Path(pyngp.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()
