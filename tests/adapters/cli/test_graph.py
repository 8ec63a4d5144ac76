"""What ``rushes pipelines --graph`` prints."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.cli.graph import as_mermaid, as_text
from application.authoring import Pipeline
from domain.definition import PipelineDefinition, StepSpec
from examples.approval import pipeline as approval
from examples.dailies import pipeline as dailies

MERMAID_LINE = re.compile(
    r"""\ {4}(?:
        s\d+(?:\["[^"\[\]]+"\] | \[\["[^"\[\]]+"\]\] | \[/"[^"\[\]]+"/\])
      | s\d+\ (?:--> | -\.\ after\ \.-> | -\.\ spawns\ \.->)\ s\d+
      | classDef\ optional\ stroke-dasharray:\ 5\ 5
      | class\ s\d+(?:,s\d+)*\ optional
    )\Z""",
    re.VERBOSE,
)


def shown(pipeline: Pipeline) -> dict[str, Any]:
    """As ``GET /api/pipelines`` shows it."""
    return {**pipeline.definition.to_dict(), "card": pipeline.card}


def test_text_shows_layers_with_what_each_step_waits_for() -> None:
    assert as_text(shown(dailies)).splitlines() == [
        "dailies",
        "  1  scan",
        "     notes       optional",
        "  2  probe:*     a family, spawned by scan",
        "     hash_clips  depends on scan",
        "  3  report      depends on probe:*, hash_clips; after notes",
    ]


def test_text_says_what_is_external() -> None:
    assert "  2  approve  depends on render; external" in as_text(shown(approval))


def test_mermaid_shows_boxes_and_arrows() -> None:
    assert as_mermaid(shown(dailies)).splitlines() == [
        "flowchart TD",
        '    s1["scan"]',
        '    s2[["probe:*"]]',
        '    s3["hash_clips"]',
        '    s4["notes (optional)"]',
        '    s5["report"]',
        "    s1 -. spawns .-> s2",
        "    s1 --> s3",
        "    s2 --> s5",
        "    s3 --> s5",
        "    s4 -. after .-> s5",
        "    classDef optional stroke-dasharray: 5 5",
        "    class s4 optional",
    ]
    assert '    s2[/"approve (external)"/]' in as_mermaid(shown(approval)).splitlines()


@st.composite
def graphs(draw: st.DrawFn) -> PipelineDefinition:
    """Steps that wait for any of those before them, under names that mean something to Mermaid."""
    names = ["end", "graph", "style-x", "o", "x", "subgraph", "click", "_".join("abc")]
    specs: list[StepSpec] = []
    for name in names[: draw(st.integers(1, len(names)))]:
        before = (
            draw(st.lists(st.sampled_from([s.name for s in specs]), unique=True)) if specs else []
        )
        cut = draw(st.integers(0, len(before)))
        specs.append(
            StepSpec(
                name,
                depends_on=tuple(before[:cut]),
                after=tuple(before[cut:]),
                required=not before[:cut] and draw(st.booleans()),
                external=draw(st.booleans()),
            )
        )
    return PipelineDefinition("any", tuple(specs))


@given(graphs())
def test_any_graph_is_whole_and_valid(definition: PipelineDefinition) -> None:
    pipeline = {**definition.to_dict(), "card": True}
    first, *lines = as_mermaid(pipeline).splitlines()
    assert first == "flowchart TD"
    assert all(MERMAID_LINE.match(line) for line in lines), lines
    arrows = sum(len(spec.depends_on) + len(spec.after) for spec in definition.steps)
    assert sum(".->" in line or "-->" in line for line in lines) == arrows
    text = as_text(pipeline).splitlines()
    assert text[0] == "any  (works on a card)"
    assert len(text) == 1 + len(definition.steps)


def test_a_long_chain_is_drawn() -> None:
    specs = [StepSpec("s0")]
    specs += [StepSpec(f"s{n}", depends_on=(f"s{n - 1}",)) for n in range(1, 1_000)]
    chain = {**PipelineDefinition("chain", tuple(specs)).to_dict(), "card": False}
    assert as_text(chain).splitlines()[-1] == "  1000  s999  depends on s998"
