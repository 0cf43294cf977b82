"""The script for a GPU, which runs the same way on a CPU with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_lists_what_it_will_do_and_for_how_long(tmp_path):
    lines = run(tmp_path / "out", "--dry-run").splitlines()
    seconds = [float(line.split("about ")[1].removesuffix(" s")) for line in lines]
    assert len(lines) == 11 and sum(seconds) <= 480
    assert not (tmp_path / "out" / "rows.jsonl").exists()


@pytest.mark.slow
def test_it_measures_goes_on_where_it_stopped_and_writes_its_table(tmp_path):
    out, results = tmp_path / "out", tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    # No time for more than the first two cases, which begin side by side.
    assert "left for the next call" in run(out, "--toy", "--budget-s=7")
    rows = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert {json.loads(row)["case"] for row in rows} == {"kernels", "t5_small-ours"}
    # A machine that is taken away leaves half a line.
    (out / "rows.jsonl").write_text("".join(rows) + rows[0][:20])
    printed = run(out, "--toy", f"--results={results}")
    assert "kernels: was measured before" in printed and "failed" not in printed
    found = [json.loads(row) for row in (out / "rows.jsonl").read_text().splitlines()]
    sides = [row["side"] for row in found if "train" in row.get("what", "")]
    assert sides.count("ours") == sides.count("sentence-transformers") == 4
    errors = [row["error"] for row in found if "error" in row and "float32" in row["what"]]
    assert errors and max(errors) < 1e-4
    assert results.read_text().startswith("# Results\n") and "| ours |" in results.read_text()
