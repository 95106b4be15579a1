"""The files of launch/pod/: what they declare is right. ``tests/long/test_pods.py`` runs them by stubs."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from optimas_jax.llm.specs import provider
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.setup.completers import answering

POD = Path(__file__).parents[2] / "launch" / "pod"
MANIFESTS = sorted(POD.glob("*.yaml"))


def parts(path):
    return {part["kind"]: part for part in yaml.safe_load_all(path.read_text())}


def of_job(path):
    job = parts(path)["Job"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    return job, job["template"]["spec"], container


def test_there_is_a_file_for_each_kind_of_cluster():
    assert {path.name for path in POD.iterdir()} == {"gke-tpu.yaml", "kubernetes-gpu.yaml", "slurm.sbatch", "tpu.sh"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_have_what_kubernetes_requires(path):
    found = parts(path)
    versions = {kind: part["apiVersion"] for kind, part in found.items()}
    assert versions == {"Service": "v1", "PersistentVolumeClaim": "v1", "Job": "batch/v1"}
    assert {part["metadata"]["name"] for part in found.values()} == {"optimas"}
    service, claim = found["Service"]["spec"], found["PersistentVolumeClaim"]["spec"]
    assert service["clusterIP"] == "None"  # a name for every pod
    assert service["selector"] == {"job-name": found["Job"]["metadata"]["name"]}
    assert claim["accessModes"] == ["ReadWriteMany"]
    assert re.fullmatch(r"\d+[GT]i", claim["resources"]["requests"]["storage"])
    job, pod, container = of_job(path)
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # failed pods are made again, and the run goes on, but for its own errors:
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    assert claim["storageClassName"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all(isinstance(word, str) for word in container["command"])
    assert container["command"][:2] == ["python", "launch/run.py"]
    assert container["resources"]["limits"].keys() <= {"nvidia.com/gpu", "google.com/tpu"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_keep_to_the_schemas_of_kubernetes(path):
    validate = pytest.importorskip("kubernetes_validate")
    for part in yaml.safe_load_all(path.read_text()):
        validate.validate(part, validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_have_the_keys_of_the_configuration_that_they_name(path):
    _, _, container = of_job(path)
    [name] = [word.partition("=")[2] for word in container["command"] if word.startswith("--config=")]
    file, _, variant = name.partition(":")
    config = parse_config(runpy.run_path(str(POD.parents[1] / file))["get_config"](variant).to_dict())
    given = {one["name"]: one.get("valueFrom", {}).get("secretKeyRef", {}) for one in container["env"]}
    needed = {spec.partition(":")[0].upper() + "_API_KEY" for spec in answering(config) if provider(spec)}
    assert needed | {"HF_TOKEN"} == {variable for variable, secret in given.items() if secret}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (134, True), (137, True)])
def test_a_batch_job_is_queued_again_if_a_process_was_lost(tmp_path, code, requeued):
    """An error of the run itself would come again, and is not."""
    stubs = {
        "srun": f'echo "$@" > {tmp_path}/asked; exit {code}',
        "scontrol": f'echo "$@" >> {tmp_path}/told; echo here',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here[1-2]", "SLURM_CPUS_PER_TASK": "16"}
    command = ["bash", str(POD / "slurm.sbatch"), "--config.seed=1"]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **job}, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert ("requeue 7" in (tmp_path / "told").read_text().splitlines()) == requeued
    assert "--cpus-per-task=16" in (tmp_path / "asked").read_text()


def test_gpu_pods_name_the_first_one_and_all_of_them():
    job, _, container = of_job(POD / "kubernetes-gpu.yaml")
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["COORDINATOR"] == "optimas-0.optimas:8476"
    assert container["command"][-3:] == [
        "--coordinator=$(COORDINATOR)",
        f"--num_processes={job['completions']}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def test_tpu_pods_are_the_machines_of_their_slice():
    job, pod, container = of_job(POD / "gke-tpu.yaml")
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
    assert container["command"][-1] == "--coordinator=auto"


def test_scripts_are_scripts():
    for name in ("slurm.sbatch", "tpu.sh"):
        subprocess.run(["bash", "-n", str(POD / name)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(POD / "slurm.sbatch"), str(POD / "tpu.sh")], check=True)


def test_a_batch_job_has_a_process_on_each_machine():
    lines = (POD / "slurm.sbatch").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert lines[0] == "#!/bin/bash"
    assert asked.keys() == {
        *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "open-mode"),
    }
    assert asked["ntasks-per-node"] == "1"


def test_a_slice_without_kubernetes_gets_the_command_on_all_machines(tmp_path):
    stub = tmp_path / "gcloud"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/asked"\n')
    stub.chmod(0o755)
    words = ["--config=configs/hotpotqa.py:smoke", "--config.seed=1", "--config.system.language_model.model=a b"]
    command = [str(POD / "tpu.sh"), "my-slice", "us-west4-a", *words]
    subprocess.run(command, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:7] == ["compute", "tpus", "tpu-vm", "ssh", "my-slice", "--zone=us-west4-a", "--worker=all"]
    assert asked[7].startswith("--command=cd optimas_jax && exec .venv/bin/python launch/run.py --config=")
    assert asked[7].endswith(r"--config.system.language_model.model=a\ b --coordinator=auto")
