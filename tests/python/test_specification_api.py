"""Every member of specification_api.py is there, with its access, default, shape and type, and every method with its
parameters."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import numpy as np
import pyngp
import pytest
from fields.tiny_scene import INTRINSICS, TinyScene
from pyngp import Testbed
from python.specification_api import MEMBERS, METHODS, NO, Member, Method

# Defaults and accesses that are other than instant-ngp's on purpose.
OURS: dict[str, dict[str, Any]] = {
    "training.train_mode": {"default": "Nerf"},  # design section 7
    # Datasets are built through them (pyngp.dataset), which nobody needs to know; to write them later changes nothing.
    **{f"dataset.{name}": {"access": "rw"} for name in
       ("render_aabb", "up", "offset", "scale", "aabb_scale", "from_mitsuba", "is_hdr")},
    # It is that of the image.
    "view.resolution": {"access": "ro"},
}  # fmt: skip

# Not there yet. test_pending_is_what_is_missing fails when one has come: take it out here.
PENDING: set[str] = {
    # Other tasks, and meshes
    *(f"testbed.{name}" for name in
      ("override_sdf_training_data", "calculate_iou", "compute_image_mse", "compute_marching_cubes_mesh",
       "compute_and_save_marching_cubes_mesh", "compute_and_save_png_slices")),
}  # fmt: skip


def everything() -> dict[str, Member | Method]:
    return {f"{row.owner}.{row.name}": row for row in (*MEMBERS, *METHODS)}


@pytest.fixture(scope="module")
def owners(tiny: TinyScene) -> dict[str, Any]:
    """Objects as the specification's defaults are those of, by owner; those whose class is missing are not in it."""
    testbed, with_view = Testbed(device="cpu"), Testbed(device="cpu")
    with_view.set_images(tiny.images[:1], tiny.poses[:1], INTRINSICS)
    training = testbed.nerf.training
    found = {
        "testbed": testbed,
        "nerf": testbed.nerf,
        "training": training,
        "dataset": training.dataset,
        "view": with_view.nerf.training.dataset.metadata[0],
    }
    for name in ("CameraKeyframe", "CameraPathRenderSettings", "CameraPathPos", "CameraPath"):
        if hasattr(pyngp, name):
            found[name] = getattr(pyngp, name)()
    return found


def enum_of(value: Any) -> str | None:
    return type(value).__name__ if hasattr(type(value), "__members__") else None


def check_type(value: Any, kind: str) -> None:
    array = re.fullmatch(r"(float32|int32)\[([\d,]+)\]", kind)
    if array:
        assert isinstance(value, np.ndarray) and value.dtype == array[1], type(value)
        assert value.shape == tuple(map(int, array[2].split(",")))
    elif kind in ("bool", "int", "float", "str", "list"):
        assert type(value).__name__ == kind
    elif kind == "number":
        assert type(value) in (int, float)
    elif kind in ("box", "lens"):
        assert isinstance(value, {"box": pyngp.BoundingBox, "lens": pyngp.Lens}[kind])
    elif kind != "object":
        assert type(value).__name__ == kind


def check_default(value: Any, wanted: Any, kind: str) -> None:
    if kind == "box":
        np.testing.assert_allclose([value.min, value.max], wanted)
    elif kind == "lens":
        assert value.mode.name == wanted
    elif enum_of(value):
        assert value.name == wanted
    elif isinstance(wanted, bool | str | int):
        assert value == wanted
    else:
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


@pytest.mark.parametrize("row", MEMBERS, ids=lambda row: f"{row.part} {row.owner}.{row.name}")
def test_members(row, owners):
    name = f"{row.owner}.{row.name}"
    if name in PENDING:
        pytest.skip("of an open issue: PENDING says which")
    ours = OURS.get(name, {})
    owner = owners[row.owner]
    value = getattr(owner, row.name)
    check_type(value, row.type)
    default = ours.get("default", row.default)
    if default is not NO:
        check_default(value, default, row.type)
    if ours.get("access", row.access) == "rw":
        setattr(owner, row.name, value)
        again = getattr(owner, row.name)
        if default is not NO:
            check_default(again, default, row.type)
    else:
        with pytest.raises(AttributeError):
            setattr(owner, row.name, value)


def python_parameters(method: Any) -> list[tuple[str, str]]:
    found = inspect.signature(method).parameters.values()
    none = inspect.Parameter.empty
    return [
        (p.name, "" if p.default is none else repr(p.default))
        for p in found
        if p.name != "self" and p.kind != inspect.Parameter.KEYWORD_ONLY
    ]


def bound_parameters(method: Any) -> list[tuple[str, str]]:
    """From the signature that begins a bound function's docstring."""
    line = (method.__doc__ or "").splitlines()[0]
    text = re.sub(r"<[^<>]*>", "None", line)
    function = ast.parse(f"def {text}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = [a.arg for a in function.args.args][1:]
    defaults = [ast.unparse(d) for d in function.args.defaults]
    return list(zip(arguments, [""] * (len(arguments) - len(defaults)) + defaults, strict=True))


@pytest.mark.parametrize("row", METHODS, ids=lambda row: f"{row.part} {row.owner}.{row.name}")
def test_methods(row, owners):
    if f"{row.owner}.{row.name}" in PENDING:
        pytest.skip("of an open issue: PENDING says which")
    method = getattr(owners[row.owner], row.name)
    try:
        inspect.signature(method)
        found = python_parameters(method)
    except ValueError:
        found = bound_parameters(method)
    wanted = [tuple(p.strip().partition("=")[::2]) for p in row.parameters.split(",")] if row.parameters else []
    assert len(found) >= len(wanted), (found, wanted)
    for (name, default), (wanted_name, wanted_default) in zip(found, wanted, strict=False):
        assert wanted_name in ("_", name)
        if wanted_default:
            assert ast.literal_eval(default) == ast.literal_eval(wanted_default), name
    # What instant-ngp has no parameter for must not be needed.
    assert all(default for _, default in found[len(wanted) :])


def complete(row: Member | Method, owners: dict[str, Any]) -> bool:
    owner = owners.get(row.owner)
    if owner is None or not hasattr(owner, row.name):
        return False
    return isinstance(row, Member) or "start_t" not in row.parameters or "start_t" in getattr(owner, row.name).__doc__


def test_pending_is_what_is_missing(owners):
    missing = {name for name, row in everything().items() if not complete(row, owners)}
    assert missing == PENDING


def test_the_table_names_each_member_once():
    assert len(everything()) == len(MEMBERS) + len(METHODS)
    assert set(OURS) <= set(everything())
