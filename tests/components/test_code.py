"""What changes the identity of code, and what does not."""

from pathlib import Path
from textwrap import dedent

import pytest

from components.code import NEUTRAL, Sources, code_digest, code_of, sources
from invfusion.degradations import Mixture
from invfusion.degradations.motion_blur import StridedMotionBlur
from invfusion.errors import ConfigError
from invfusion.samplers import Heun

SOURCES = {
    "invfusion/__init__.py": "",
    "invfusion/shapes/__init__.py": """
        from invfusion.shapes.circle import Circle as Circle
        from invfusion.shapes.square import Square
        SHAPES = {"square": Square}
    """,
    "invfusion/shapes/circle.py": """
        from invfusion.shapes.base import Shape
        class Circle(Shape):
            def area(self, r):
                '''Of a disc.'''
                return 3 * r * r
    """,
    "invfusion/shapes/square.py": "from invfusion.shapes.base import Shape\nclass Square(Shape): ...\n",
    "invfusion/shapes/base.py": "class Shape: ...\n",
    "components/__init__.py": "",
    "components/params.py": "from invfusion.shapes import SHAPES\n",
    "components/draw.py": """
        from typing import TYPE_CHECKING
        from components import params
        from invfusion.shapes import Circle
        if TYPE_CHECKING:
            from invfusion.shapes import Square
        def draw():
            import invfusion.late
            return Circle
    """,
    "components/show.py": "from invfusion.shapes import SHAPES\n",
    "invfusion/late.py": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path


def change(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def draws(tree: Path) -> str:
    return Sources(tree).digest("components.draw")


def test_the_code_of_an_entry_point_is_what_it_imports(tree: Path) -> None:
    assert list(Sources(tree).digests("components.draw")) == [
        "components.draw", "invfusion.late", "invfusion.shapes.base", "invfusion.shapes.circle",
    ]  # fmt: skip


def test_who_uses_a_package_s_own_list_depends_on_every_member(tree: Path) -> None:
    shown = Sources(tree).digests("components.show")
    assert {"invfusion.shapes", "invfusion.shapes.circle", "invfusion.shapes.square"} <= set(shown)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("invfusion/shapes/circle.py", "Of a disc.", "Of a whole disc."),
        ("invfusion/shapes/circle.py", "return 3 * r * r", "return (3 * r) * r  # nearly\n"),
        ("invfusion/shapes/square.py", "...", "side = 1"),
        ("components/params.py", "SHAPES", "SHAPES as FORMS"),
        ("invfusion/shapes/__init__.py", "SHAPES = ", "OTHERS = "),
    ],
    ids=["docstring", "comment", "a neighbour", "the reading of parameters", "a list of members"],
)
def test_what_is_not_used_changes_nothing(tree: Path, name: str, old: str, new: str) -> None:
    before = draws(tree)
    change(tree, name, old, new)
    assert draws(tree) == before


def test_a_file_that_nobody_imports_changes_nothing(tree: Path) -> None:
    before = draws(tree), Sources(tree).digest("components.show")
    (tree / "invfusion/shapes/triangle.py").write_text("class Triangle: ...\n")
    assert (draws(tree), Sources(tree).digest("components.show")) == before


@pytest.mark.parametrize("name", ["components/draw.py", "invfusion/late.py", "invfusion/shapes/base.py"])
def test_what_is_used_changes_the_identity(tree: Path, name: str) -> None:
    before = draws(tree)
    (tree / name).write_text((tree / name).read_text() + "\nADDED = 1\n")
    assert draws(tree) != before


def test_a_moved_number_changes_the_identity(tree: Path) -> None:
    before = draws(tree)
    change(tree, "invfusion/shapes/circle.py", "3 * r * r", "3.1 * r * r")
    assert draws(tree) != before


def test_an_entry_point_may_name_what_a_package_passes_on(tree: Path) -> None:
    code = Sources(tree)
    assert code.digest("invfusion.shapes:Circle") == code.digest("invfusion.shapes.circle")


def test_a_name_that_cannot_be_traced_stands_for_its_whole_package(tree: Path) -> None:
    assert "invfusion.shapes.square" in Sources(tree).digests("invfusion.shapes:Anything")


def test_a_wrong_entry_point_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no module invfusion\.sampler"):
        code_digest("invfusion.sampler")


def test_the_order_of_entry_points_does_not_matter() -> None:
    one, other = "invfusion.samplers.heun", "invfusion.samplers.dps"
    assert code_digest(one, other) == code_digest(other, one) != code_digest(one)


def test_objects_name_the_code_of_their_settings() -> None:
    found = code_of({"a": Mixture(members=[StridedMotionBlur()])}, Heun())
    assert {"invfusion.degradations.mixture", "invfusion.degradations.motion_blur", "invfusion.samplers.heun"} <= found


def test_each_module_said_to_be_neutral_is_there() -> None:
    root = sources().root
    for name in NEUTRAL:
        path = root / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
