"""What documents show of pipelines stands in an example, which is tested."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from adapters.cli.graph import as_text
from examples.dailies import pipeline as dailies

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {path.name: path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))}


def blocks(document: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert found
    return found


def squeezed(text: str) -> str:
    """Without empty lines, and with one space before a comment."""
    lines = (re.sub(r"(?<=\S)\s+#", " #", line.rstrip()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


PIPELINES_MD = blocks((ROOT / "docs/pipelines.md").read_text(), "python")


@pytest.mark.parametrize("block", PIPELINES_MD, ids=lambda block: block.split("\n")[0][:40])
def test_each_block_of_the_guide_stands_in_an_example(block: str) -> None:
    assert any(block in text for text in EXAMPLES.values()), textwrap.indent(block, "  ")


def test_the_ten_lines_of_the_readme_are_the_example() -> None:
    (ten_lines,) = (
        block
        for block in blocks((ROOT / "README.md").read_text(), "python")
        if "Pipeline(" in block
    )
    assert squeezed(ten_lines) == squeezed(EXAMPLES["my_pipelines.py"])


def test_the_graph_in_the_guide_is_what_the_command_prints() -> None:
    drawn = as_text({**dailies.definition.to_dict(), "card": False})
    assert f"```\n{drawn}\n```\n" in (ROOT / "docs/pipelines.md").read_text()


def test_every_example_has_a_test_beside_it() -> None:
    pipelines = {name for name, text in EXAMPLES.items() if "Pipeline(" in text}
    assert {f"test_{name}" for name in pipelines if not name.startswith("test_")} <= set(EXAMPLES)
