"""Every launch file is what the CLI makes, and passes the tools that read such files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jina_jax.cli.main import main
from jina_jax.launch.options import CACHE, GRACE_S, MOUNT
from jina_jax.plan.topology import find_topology
from tests.launch.jobset_schema import JOBSET

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
GOOGLE = ["--image", "r.dev/p/i:1", "--bucket", "b", "--project", "p", "--zone", "us-west4-a"]


def tool(name, *args):
    done = subprocess.run([BIN / name, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def launched(capsys, *args):
    assert main(["launch", *args]) == 0
    return capsys.readouterr().out


def refused(capsys, *args):
    assert main(["launch", *args]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_the_examples_are_what_the_cli_makes(tmp_path):
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([LAUNCH / "generate.sh", tmp_path], check=True, env=environment)
    made = {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()}
    assert len(made) == 6
    assert made == {name: (LAUNCH / name).read_text() for name in made}, "run launch/generate.sh"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_bash_and_shellcheck(script):
    subprocess.run(["bash", "-n", script], check=True)
    tool("shellcheck", script)


def test_the_dockerfile_passes_hadolint():
    tool("hadolint", str(LAUNCH / "Dockerfile"))


@pytest.mark.parametrize("topology", ["v5e:16x16", "v4:2x2x4", "3xv6e:4x4", "v5p:2x2x1"])
@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_a_jobset_passes_the_schemas_and_has_the_chips_of_plan(capsys, topology, spot):
    text = launched(
        capsys, "gke", "base", "--topology", topology, "--image", "r/i:1", "--bucket", "b", *spot
    )
    jobset = yaml.safe_load(text)
    jsonschema.validate(jobset, JOBSET)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    kubernetes_validate.validate(
        job | {"spec": replicated["template"]["spec"]}, "1.33", strict=True
    )
    planned, spec = find_topology(topology), replicated["template"]["spec"]
    assert replicated["replicas"] == planned.slices
    assert spec["parallelism"] == spec["completions"] == planned.hosts_per_slice
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips * spec["parallelism"] * replicated["replicas"] == planned.chips
    assert container["resources"]["requests"] == container["resources"]["limits"]
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]
    assert ("cloud.google.com/gke-spot" in selector) == bool(spot)
    assert pod["terminationGracePeriodSeconds"] == GRACE_S
    assert [m["mountPath"] for m in container["volumeMounts"]] == [MOUNT, CACHE]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    is_alone = planned.slices * planned.hosts_per_slice == 1
    assert ("--distributed.coordinator=auto" in container["command"]) == (not is_alone)


def test_an_unknown_field_of_a_jobset_would_be_found(capsys):
    jobset = yaml.safe_load(launched(capsys, "gke", "base", "--image", "i", "--bucket", "b"))
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["template"]["spec"]["nodeSelectors"] = spec["template"]["spec"].pop("nodeSelector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(JOB | {"spec": spec}, "1.33", strict=True)
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, JOBSET)


@pytest.mark.parametrize("topology", ["v5e:8x8", "2xv6e:4x4"])
def test_xpk_and_queued_resources_name_the_slices_of_plan(capsys, topology):
    planned = find_topology(topology)
    xpk = launched(capsys, "xpk", "base", "--topology", topology, *GOOGLE, "--cluster", "c")
    queued = launched(capsys, "queued-resources", "base", "--topology", topology, *GOOGLE)
    chips = planned.chips // planned.slices
    of_v5e = topology.startswith("v5e")
    name = f"v5litepod-{chips}" if of_v5e else f"v6e-{chips}"
    assert f"--tpu-type={name} " in xpk and f"--num-slices={planned.slices} " in xpk
    assert f"--accelerator-type={name} " in queued
    nodes = "--node-id=base" if planned.slices == 1 else "--node-count=2 --node-prefix=base"
    assert nodes in queued


@pytest.mark.parametrize(
    ("target", "topology"), [("gce-mig", "v6e:8x8"), ("queued-resources", "v4:4x4x4")]
)
def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path, capsys, target, topology):
    script = tmp_path / "start.sh"
    script.write_text(launched(capsys, target, "base", "--topology", topology, *GOOGLE, "--spot"))
    tool("shellcheck", str(script))
    # Without gcloud on the path, whatever is run in earnest fails.
    done = subprocess.run(
        ["/bin/bash", script, "--dry-run"], capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert len(commands) == (3 if target == "gce-mig" else 2)
    given = " ".join(commands[-1 if target == "gce-mig" else 0])
    assert ("--size=16" if target == "gce-mig" else "--accelerator-type=v4-128") in given


@pytest.mark.parametrize("machine", ["h100:8", "2xh100:4"])
def test_slurm_starts_a_process_a_gpu(capsys, machine):
    text = launched(capsys, "slurm", "base@h100:8", "--topology", machine, "--partition", "gpu")
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    nodes, gpus = int(given["nodes"]), int(given["gpus-per-node"])
    assert (nodes, gpus) == ((1, 8) if machine == "h100:8" else (2, 4))
    assert int(given["ntasks-per-node"]) == gpus
    assert given["signal"] == f"TERM@{GRACE_S}" and given["partition"] == "gpu"


def test_skypilot_joins_nodes_by_what_it_tells_them(capsys):
    two = launched(capsys, "skypilot", "base@h100:8", "--topology", "2xh100:8", *GOOGLE[:4])
    task = yaml.safe_load(two)
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    found = subprocess.run(
        ["bash", "-c", task["run"].replace("jina-jax", "printf '%s\\n'")],
        env={"PATH": "/usr/bin:/bin", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
             "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert found[-3:] == [
        "--distributed.coordinator=10.0.0.1:8476", "--distributed.processes=2",
        "--distributed.process-id=1",
    ]  # fmt: skip


def test_a_config_file_is_read_from_the_bucket(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jina_jax.configs.base import get_config as base\n"
        "def get_config(machine=''):\n    return base(machine)\n"
    )
    text = launched(capsys, "gke", f"{file}@v6e:8x8", *GOOGLE[:4], "--name", "My_Run")
    assert f"gcloud storage cp {file} gs://b/configs/" in text
    command = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert command["spec"]["containers"][0]["command"][2] == f"{MOUNT}/configs/mine.py@v6e:8x8"
    assert yaml.safe_load(text)["metadata"]["name"] == "my-run"


def test_flags_of_the_trainer_are_checked_before_anything_is_rented(capsys):
    with pytest.raises(SystemExit):
        main(["launch", "gke", "base", *GOOGLE[:4], "--", "--optim.learning-rat", "1"])
    assert "learning-rate" in capsys.readouterr().err
    text = launched(capsys, "gke", "base", *GOOGLE[:4], "--", "--optim.learning-rate", "1e-4")
    assert '"--optim.learning-rate", "1e-4"' in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gke", "base"], "give --image, --bucket"),
        (["gke", "demo", *GOOGLE[:4]], "give --topology"),
        (["gke", "base@h100:8", *GOOGLE[:4]], "take skypilot or slurm"),
        (["slurm", "base"], "v5e is a TPU"),
        (["gce-mig", "base", *GOOGLE], "makes no v5e hosts"),
        (["gce-mig", "base@v6e:8x8", "--topology", "2xv6e:8x8", *GOOGLE], "one slice, not 2"),
        (["gke", "base", "--image", "i; rm -rf /", "--bucket", "b"], "special character"),
        (["gke", "base", "--image", "i", "--bucket", "gs://b"], "without gs://"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(capsys, args, message):
    assert message in refused(capsys, *args)
