"""The files of launch/pod/: what they declare is right. ``tests/long/test_pods.py`` runs them by stubs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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
    assert re.fullmatch(r"\d+Gi", claim["resources"]["requests"]["storage"])
    job, pod, container = of_job(path)
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert pod["restartPolicy"] == "OnFailure"  # the same command goes on where the run was
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all(isinstance(word, str) for word in container["command"])
    assert container["command"][:2] == ["python", "launch/run.py"]
    assert container["resources"]["limits"].keys() <= {"nvidia.com/gpu", "google.com/tpu"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_keep_to_the_schemas_of_kubernetes(path):
    validate = pytest.importorskip("kubernetes_validate")
    for part in yaml.safe_load_all(path.read_text()):
        validate.validate(part, validate.latest_version(), strict=True)


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
    assert asked[7].startswith("--command=cd optimas_jax && exec python launch/run.py --config=")
    assert asked[7].endswith(r"--config.system.language_model.model=a\ b --coordinator=auto")
