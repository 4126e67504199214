"""docs/configuration.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from config import metrics
from config.kinds.catalogue import supported_kinds
from config.source.manifest_set import read_file
from telemetry.metrics import Description

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_its_manifests_are_accepted_and_there_is_one_of_every_kind() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    readings = [read_file(f"block {number}", block, None) for number, block in enumerate(blocks)]
    assert [str(problem) for reading in readings for problem in reading.problems] == []
    assert {ref.kind for reading in readings for ref in reading.good} == {
        kind for kind, _ in supported_kinds()
    }


def test_its_table_of_kinds_is_complete() -> None:
    rows = dict(
        re.findall(
            r"^\| (\w+) \| ([\w./, -]+?) \| ", TEXT.partition("## Kinds")[2].partition("###")[0], re.MULTILINE
        )
    )
    del rows["kind"]
    versions = {kind: found.split(" or ") for kind, found in supported_kinds()}
    assert {kind: sorted(each.rpartition("/")[2] for each in found) for kind, found in versions.items()} == {
        kind: sorted(each.strip().rpartition("/")[2] for each in row.split(",")) for kind, row in rows.items()
    }


def test_its_metrics_are_all_there_are() -> None:
    descriptions = [each for each in vars(metrics).values() if isinstance(each, Description)]
    assert descriptions
    documented = set(re.findall(r"`(mycelia_\w+)", TEXT))
    assert documented == {each.sample_name for each in descriptions}


def test_its_example_errors_are_the_words_of_the_reader() -> None:
    (block,) = [each for each in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) if each.startswith("error:")]
    text = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports:
  - port: "80"
    protocl: TCP
"""
    reading = read_file("shop.yaml", text, None)

    def words(line: str) -> str:
        return re.sub(r"document \d+, line \d+", "", line)

    assert [words(str(problem)) for problem in reading.problems] == [
        words(line) for line in block.splitlines()
    ]
