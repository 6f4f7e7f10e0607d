"""The dashboards, as code: `make dashboards` writes grafana/dashboards/*.json, and a test holds the files in step.

A generator and not JSON by hand: four dashboards are 5,000 lines of JSON, in which a metric has to be searched for;
here a panel is one call. The classes are Grafana's own (grafana-foundation-sdk). One file per dashboard: `live`,
`compared`, `cluster`, `gpu`; what they share is in `panels`.
"""

import argparse
import sys
from pathlib import Path

from cluster import cluster
from compared import compared
from gpu import gpu
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from live import live

DASHBOARDS = {"live": live, "compared": compared, "cluster": cluster, "gpu": gpu}


def rendered() -> dict[str, str]:
    """File name to content of every dashboard."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {f"{name}.json": encoder.encode(build().build()) + "\n" for name, build in DASHBOARDS.items()}


def main() -> None:
    """Write the dashboards into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "dashboards")
    folder = parser.parse_args().folder
    for name, content in rendered().items():
        (folder / name).write_text(content)
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
