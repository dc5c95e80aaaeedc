"""The check against newer releases knows every dependency, and which of them our ranges exclude."""

from pathlib import Path

from tests.newest import outside, requirements


def test_every_dependency_is_upgraded_and_those_outside_of_our_ranges_are_named(
    tmp_path: Path,
) -> None:
    names = {each.name for each in requirements()}
    assert {"transformers", "peft", "torch", "datasets", "pytest"} <= names
    assert "glmtune" not in names  # its extras instead

    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\nname = "mine"\ndependencies = ["packaging<1", "numpy>=1", "no-such-name<1"]\n'
        '[project.optional-dependencies]\ndev = ["mine[more]"]\nmore = ["pyyaml<2"]\n',
        encoding="utf-8",
    )
    assert [line.split()[0] for line in outside(project)] == ["packaging", "pyyaml"]
