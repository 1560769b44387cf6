"""launch/gke.py: its manifests, against Kubernetes' schema, and the calls of kubectl."""

import copy
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devnet_jax.errors import UserError
from devnet_jax.launchers.gke import PodGroup, manifest
from tests.launchers.programs import NASTY, launch, make_program, require_golden

GPUS = PodGroup(
    name="carpet",
    namespace=None,
    image="europe-docker.pkg.dev/p/r/devnet_jax",
    hosts=2,
    accelerator="nvidia-l4",
    topology=None,
    devices_per_host=8,
    spot=False,
    service_account=None,
    max_restarts=20,
    grace_seconds=120,
    python="python",
)
TPUS = dataclasses.replace(
    GPUS,
    namespace="vision",
    hosts=4,
    accelerator="tpu-v5-lite-podslice",
    topology="4x4",
    devices_per_host=4,
    spot=True,
    service_account="trainer",
)
FLAGS = ("--name=carpet", "--image=i", "--accelerator=nvidia-l4", "--devices_per_host=8")
BUCKET = "--workdir=gs://bucket/run"


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the only Job in a JobSet."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    spec = replicated["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec}


def expanded(word: str, variables: dict[str, str]) -> str:
    """Expands a word of a container's command as Kubernetes does."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, word)


def test_the_manifests_are_those_of_the_golden_files() -> None:
    for name, pods in (("gke_gpu.yaml", GPUS), ("gke_tpu.yaml", TPUS)):
        made = manifest(pods, ["--config=configs/mvtec.py:carpet", BUCKET])
        require_golden(name, yaml.safe_dump(made, sort_keys=False))


@pytest.mark.parametrize("pods", [GPUS, TPUS])
def test_the_job_matches_the_schema(pods: PodGroup) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = job_of(manifest(pods, list(NASTY)))
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, version, strict=True)
    wrong = copy.deepcopy(job)
    wrong["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["operators"] = "In"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("pods", [GPUS, TPUS])
def test_restart_policies_of_the_jobset(pods: PodGroup) -> None:
    made = manifest(pods, [BUCKET])
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # Any other status than these fails the Job by its policy, and so the JobSet; these restart all
    # pods.
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 20
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    spec = job_of(made)["spec"]
    disrupted, error = spec["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count"
    assert (error["action"], error["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert error["onExitCodes"]["values"] == [75, 76, 134, 135, 137, 139, 142, 143]
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    assert spec["parallelism"] == spec["completions"] == pods.hosts
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert pod["terminationGracePeriodSeconds"] == 120


def test_node_selectors() -> None:
    gpu = job_of(manifest(GPUS, [BUCKET]))["spec"]["template"]["spec"]
    assert gpu["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert gpu["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    tpu = job_of(manifest(TPUS, [BUCKET]))["spec"]["template"]["spec"]
    assert tpu["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert tpu["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert tpu["serviceAccountName"] == "trainer"


@pytest.mark.parametrize(
    ("pods", "process_flags"),
    [
        (
            GPUS,
            [
                "--coordinator=carpet-workers-0-0.carpet:8476",
                "--num_processes=2",
                "--process_id=1",
            ],
        ),
        (TPUS, ["--cluster=tpu"]),
    ],
)
def test_any_argument_is_preserved(pods: PodGroup, process_flags: list[str]) -> None:
    variables = {"JOB_COMPLETION_INDEX": "1", "HOME": "/root", "id": "0"}
    text = yaml.safe_dump(manifest(pods, list(NASTY)), allow_unicode=True)
    (container,) = job_of(yaml.safe_load(text))["spec"]["template"]["spec"]["containers"]
    words = [expanded(word, variables) for word in container["command"]]
    assert words == ["python", "-m", "devnet_jax.main", *process_flags, *NASTY]


def test_the_manifest_is_applied(tmp_path: Path) -> None:
    make_program(tmp_path / "kubectl", f'#!/bin/sh\necho "$@" >{tmp_path}/a; cat >{tmp_path}/m\n')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    dry = launch("gke", *FLAGS, "--dry_run", "--", BUCKET, "größe", environment=environment)
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "m").exists()
    ran = launch("gke", *FLAGS, "--", BUCKET, "größe", environment=environment)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a").read_text() == "apply -f -\n"
    assert (tmp_path / "m").read_text() == dry.stdout
    assert "größe" in dry.stdout
    make_program(tmp_path / "kubectl", "#!/bin/sh\necho no JobSet here >&2; exit 4\n")
    ran = launch("gke", *FLAGS, "--", BUCKET, environment=environment)
    assert ran.returncode == 1
    assert ran.stderr == "no JobSet here\nerror: kubectl apply -f -: ended with status 4\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--config=c"], "error: --workdir is missing after --"),
        (["--", "--workdir=runs/x"], "error: --workdir=runs/x: it is deleted with the pod; give"),
        (["--name=", "--", BUCKET], "error: --name is missing"),
        (["--name=My_Run", "--", BUCKET], "error: --name=My_Run: must be lower-case"),
        (["--num_hosts=0", "--", BUCKET], "error: flag --num_hosts=0: 0 is not a positive"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    result = launch("gke", *FLAGS, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_a_name_that_is_too_long_is_refused() -> None:
    dataclasses.replace(GPUS, name="a" * 40)
    with pytest.raises(UserError, match="40 at most"):
        dataclasses.replace(GPUS, name="a" * 41)
