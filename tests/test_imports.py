"""The picture of the imports is that of the sources."""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def arrows(picture: Path) -> set[str]:
    """What the arrows stand for: "detbench: cli -> commands"."""
    return set(re.findall(r'id="([a-z]+: \w+ -&gt; \w+)"', picture.read_text()))


def test_the_picture_of_the_imports_is_up_to_date(tmp_path: Path):
    script = REPOSITORY / "scripts" / "imports_picture.py"
    subprocess.run([sys.executable, script, tmp_path / "imports.svg"], check=True)
    drawn = arrows(tmp_path / "imports.svg")
    assert len(drawn) > 50
    assert arrows(REPOSITORY / "docs" / "imports.svg") == drawn, "make imports"
