"""What people read: lines that fit beside one another."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LONGEST_LINE = 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_prose_is_long(document: Path) -> None:
    """Tables, code and HTML are as long as what they show."""
    fenced = False
    long = []
    for line in document.read_text().splitlines():
        fenced ^= line.startswith("```")
        prose = not (fenced or line.startswith(("    ", "<")) or line.lstrip().startswith("|"))
        if prose and len(line) > LONGEST_LINE:
            long.append(line)
    assert long == []
