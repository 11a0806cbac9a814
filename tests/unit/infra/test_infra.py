"""The files of infra: they parse, fit Ray's schema, hold no secret, and ask for a token everywhere.

No Docker, Kubernetes, AWS or Slurm is at hand: what is tested is what their files say, and Slurm's script with
stand-ins for its commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from boxsup_dist.config import Node, ResourceSettings
from boxsup_dist.interrupts import GRACE_S, STOP_S

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "docker-compose.yaml"
AWS = INFRA / "ray-aws.yaml"
KUBERNETES = sorted((INFRA / "kubernetes").glob("*.yaml"))
IS_SECRET = re.compile("TOKEN$|PASSWORD|SECRET|ACCESS_KEY|ROOT_USER")


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def walk(value: Any) -> Iterator[dict]:
    """Every mapping of a document."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from walk(part)


@pytest.mark.parametrize("path", [*sorted(INFRA.rglob("*.yaml")), INFRA / "Dockerfile", INFRA / "slurm.sh"])
def test_each_file_begins_with_how_to_use_it(path):
    lines = path.read_text().splitlines()
    header = [line for line in lines[:12] if line.startswith("#   ")]
    assert header, "a command in the header"
    assert all(documents(path)) if path.suffix == ".yaml" else True


def test_every_file_that_starts_ray_asks_for_the_token():
    starts = re.compile(r"^(?!\s*#).*(\bray start\b|kind: Ray)", re.M)
    token = re.compile(r"RAY_AUTH_MODE[=:] ?token|authOptions: \{mode: token, secretName: [\w-]+\}")
    found = {path.name: path.read_text() for path in INFRA.rglob("*") if path.suffix in (".yaml", ".sh")}
    starting = {name for name, text in found.items() if starts.search(text)}
    assert starting == {"docker-compose.yaml", "raycluster.yaml", "rayjob.yaml", "ray-aws.yaml", "slurm.sh"}
    for name in starting:
        assert token.search(found[name]) and "disabled" not in found[name], name
    assert "RAY_AUTH_MODE=token" in stages()["runtime"]


def test_dashboards_listen_on_this_machine_or_inside_their_cluster():
    """On all interfaces only in a container, whose ports the files publish on 127.0.0.1 or as a cluster's service."""
    for path in (AWS, INFRA / "slurm.sh"):
        assert re.findall(r"--dashboard-host[= ](\S+)", path.read_text()) == ["127.0.0.1"]
        assert "0.0.0.0" not in path.read_text()
    for spec in cluster_specs():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    kinds = {document["kind"] for path in KUBERNETES for document in documents(path)}
    assert not kinds & {"Service", "Ingress"}
    for node in documents(AWS)[0]["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"], "Ray's own group allows ssh from everywhere"


def test_folders_of_spilled_objects_are_private():
    (prepared,) = documents(AWS)[0]["initialization_commands"]
    assert "--owner 1000 --mode 0700 /opt/spill" in prepared
    assert "mkdir --parents --mode=0700" in (INFRA / "slurm.sh").read_text()


def test_no_file_holds_a_secret_or_reaches_out():
    for path in [*INFRA.rglob("*"), ROOT / ".dockerignore"]:
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text()
            assert not re.search(r"AKIA|BEGIN .*PRIVATE KEY|[0-9a-f]{32}", text), path
            # 169.254.169.254: where a machine of AWS asks for its own state
            own = {"127.0.0.1", "localhost", "mlflow", "store", "169.254.169.254"}
            assert set(re.findall(r"https?://([\w.-]+)", text)) <= own, path
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    tracked = subprocess.run(["git", "ls-files", "infra"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "infra/.env\n" not in tracked


# -- Docker -----------------------------------------------------------------------------------------------------------


def stages() -> dict[str, str]:
    """Instructions of each stage of the Dockerfile."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", (INFRA / "Dockerfile").read_text(), flags=re.M)[1:]
    return {name: f"FROM {base}\n{body}" for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_the_compiler_stays_in_the_build_stages():
    found = stages()
    assert set(found) == {"build", "build-gpu", "build-cpu", "build-mlflow", "runtime", "cpu", "gpu", "mlflow"}
    assert "g++" in found["build"]
    for name in ("runtime", "cpu", "gpu", "mlflow"):
        assert "g++" not in found[name] and "pip install" not in found[name]
        assert not found[name].startswith("FROM build")
    for name in ("cpu", "gpu"):
        assert found[name].startswith("FROM runtime") and f"COPY --from=build-{name} /opt/venv" in found[name]


def test_images_run_as_a_user_with_the_tested_versions():
    found = stages()
    for name in ("runtime", "mlflow"):
        assert re.search(r"^USER (?!root)", found[name], re.M)
    installs = re.findall(r"pip install .*", (INFRA / "Dockerfile").read_text())
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs) and installs
    sent = (ROOT / ".dockerignore").read_text().split("\n")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (INFRA / "Dockerfile").read_text(), re.M)
    assert {f"!{name}" for line in copied for name in line.split()} <= set(sent) and "*" in sent


# -- compose ----------------------------------------------------------------------------------------------------------


def services() -> dict[str, dict]:
    return documents(COMPOSE)[0]["services"]


def test_compose_has_the_whole_system_for_this_machine_alone():
    found = services()
    assert {"ray-head", "ray-worker", "mlflow", "postgres", "store"} <= set(found)
    assert "gpu" in found["ray-worker-gpu"]["profiles"]
    for name, service in found.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["image"] and "privileged" not in service and service.get("network_mode") != "host"
        depended = service.get("depends_on", {})
        assert set(depended) <= set(found)
        if isinstance(depended, dict):  # one that is to be healthy must have a check
            healthy = {key for key, value in depended.items() if value["condition"] == "service_healthy"}
            assert all("healthcheck" in found[key] for key in healthy)


def test_compose_takes_every_secret_from_the_environment():
    names = set()
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if IS_SECRET.search(key) or ("://" in value and "@" in value):
                assert re.search(r"\$\{(\w+):\?", value), f"{name}: {key}"
                names |= set(re.findall(r"\$\{(\w+)", value))
    example = (INFRA / ".env.example").read_text()
    assert names == set(re.findall(r"^(\w+)=$", example, re.M)), "the example names them all, without a value"


def test_every_ray_node_of_compose_asks_for_the_token_and_spills_to_a_volume():
    for name, service in services().items():
        if name.startswith("ray-"):
            assert service["environment"]["RAY_AUTH_MODE"] == "token"
            assert "--object-spilling-directory=/spill" in service["command"]
            assert "spill:/spill" in service["volumes"] and service["shm_size"]


def test_every_service_of_compose_is_limited_and_a_ray_node_announces_its_limits():
    for name, service in services().items():
        assert service["cpus"] and service["mem_limit"], name
        if name.startswith("ray-"):
            command = service["command"]
            assert f"--num-cpus={service['cpus']} --memory={service['mem_limit']} " in command, name
            # Ray takes whole CPUs and bytes.
            assert re.fullmatch(r"\$\{RAY_NODE_CPUS:-\d+\}", service["cpus"])
            assert re.fullmatch(r"\$\{RAY_NODE_MEMORY:-\d{9,}\}", service["mem_limit"])


def test_images_have_a_way_to_be_pinned():
    assert "config --resolve-image-digests" in COMPOSE.read_text()
    for path in (INFRA / "Dockerfile", INFRA / "kubernetes" / "raycluster.yaml"):
        assert "@sha256:" in path.read_text() and "docker buildx imagetools inspect" in path.read_text(), path


# -- AWS --------------------------------------------------------------------------------------------------------------


def test_the_cluster_fits_rays_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(documents(AWS)[0], schema)


def test_the_cluster_scales_on_spot_and_gets_the_token_from_a_file():
    cluster = documents(AWS)[0]
    options = " ".join(cluster["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options and "--volume /opt/spill:/spill" in options
    path = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options).group(1)
    assert cluster["file_mounts"][path] == "~/.ray/auth_token"
    types = cluster["available_node_types"]
    worker = types["gpu-worker"]
    assert cluster["head_node_type"] in types
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 1 <= worker["min_workers"] < worker["max_workers"] <= cluster["max_workers"]
    for kind in ("head", "worker"):
        assert "--object-spilling-directory=/spill" in cluster[f"{kind}_start_ray_commands"][-1]


# -- Kubernetes -------------------------------------------------------------------------------------------------------


def size_of(spec: dict) -> str:
    return "scaling" if "autoscalerOptions" in spec else "fixed"


def cluster_specs() -> list[dict]:
    found = [document for path in KUBERNETES for document in documents(path)]
    kinds = {"PersistentVolumeClaim", "RayCluster", "RayJob", "NetworkPolicy"}
    assert {document["kind"] for document in found} == kinds
    return [
        document["spec"].get("rayClusterSpec", document["spec"])
        for document in found
        if document["apiVersion"] == "ray.io/v1"
    ]


def check_is_closed(pod: dict) -> None:
    """What Kubernetes calls the restricted standard, and a read-only root file system."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"} <= set(container["resources"]["requests"])


@pytest.mark.parametrize(
    "spec", cluster_specs(), ids=lambda spec: "scaling" if "autoscalerOptions" in spec else "fixed"
)
def test_kubernetes_nodes_are_limited_private_and_take_secrets_by_reference(spec):
    assert spec["authOptions"] == {"mode": "token", "secretName": "boxsup-ray-token"}
    assert spec["rayVersion"] == ray.__version__
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        check_is_closed(pod)
        autoscaled = "autoscalerOptions" in spec and group is spec["headGroupSpec"]
        assert pod["automountServiceAccountToken"] is autoscaled, "only the autoscaler asks Kubernetes for anything"
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert group["rayStartParams"]["object-spilling-directory"] == "/spill"
        for container in pod["containers"]:
            assert set(container["resources"]) == {"requests", "limits"}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts == {"/shared", "/spill", "/tmp", "/home/ray"}, "the root file system is read-only"
            (plain,) = (variable for variable in container["env"] if "value" in variable)
            assert plain["name"] == "RAY_JOB_STOP_WAIT_TIME_S" and int(plain["value"]) > STOP_S + GRACE_S
            for variable in (variable for variable in container["env"] if variable is not plain):
                assert "value" not in variable and variable["valueFrom"]["secretKeyRef"]["name"].startswith("boxsup-")
    worker = spec["workerGroupSpecs"][0]
    assert 1 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    assert "nvidia.com/gpu" in worker["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    "spec", cluster_specs(), ids=lambda spec: "scaling" if "autoscalerOptions" in spec else "fixed"
)
def test_a_run_has_room_on_the_smallest_size_of_a_cluster(spec):
    worker = spec["workerGroupSpecs"][0]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    nodes = [Node(int(limits["cpu"]), int(limits["nvidia.com/gpu"]))] * worker["minReplicas"]
    ResourceSettings().resolve(nodes).check_room(nodes)


def one_document(kind: str) -> dict:
    return next(document for path in KUBERNETES for document in documents(path) if document["kind"] == kind)


def test_only_our_pods_and_the_operator_reach_the_pods():
    policy = one_document("NetworkPolicy")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    job = one_document("RayJob")["spec"]
    groups = [group for spec in cluster_specs() for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    templates = [group["template"] for group in groups] + [job["submitterPodTemplate"]]
    assert len(templates) == 5
    assert all(template["metadata"]["labels"] == labels for template in templates)
    ours, operator = policy["ingress"]
    assert ours == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])
    assert "169.254.169.254/32" in policy["egress"][0]["to"][0]["ipBlock"]["except"]


def test_the_pod_that_submits_is_as_closed_as_the_nodes():
    pod = one_document("RayJob")["spec"]["submitterPodTemplate"]["spec"]
    check_is_closed(pod)
    assert pod["automountServiceAccountToken"] is False and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["name"] == "ray-job-submitter", "KubeRay finds it by its name"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/home/ray"}


def test_the_job_takes_its_cluster_away_with_it():
    job = one_document("RayJob")
    assert job["spec"]["shutdownAfterJobFinishes"] is True and "python -m jobs." in job["spec"]["entrypoint"]


# -- Slurm ------------------------------------------------------------------------------------------------------------

STAND_INS = {
    # Drops its own options and runs the rest.
    "srun": 'echo "srun $*" >> calls; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "hostname": "echo 127.0.0.1",
    "timeout": "exit 0",
    # The worker's Ray ends at its first start, as one whose raylet died, and at its second, as one that found no head.
    "ray": 'echo "ray $* mode=$RAY_AUTH_MODE address=${RAY_ADDRESS:-none}" >> calls;'
    ' [[ $* == *--head* || $(grep -c "^ray start --address" calls) = 3 ]] || exit 1; exec sleep 60',
    # `-` is the script that waits for all nodes.
    "python": 'case "$1" in -c) echo the-token;;'
    ' -) until [ "$(grep -c "^ray start" calls 2>/dev/null)" = 4 ]; do sleep 0.05; done;;'
    ' *) cat "$RAY_AUTH_TOKEN_PATH" > seen; echo "job $* $RAY_ADDRESS" >> calls; exit 5;; esac',
}


SHELL_FILES = [*sorted(INFRA.rglob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_a_shell_file_is_sound(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_a_shell_file_passes_shellcheck(path):
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("no shellcheck on the PATH (Debian: apt-get install shellcheck)")
    done = subprocess.run([checker, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurms_script_starts_a_node_each_until_it_stays_runs_the_job_and_leaves_nothing(tmp_path):
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {"JOB_ID": "123", "NNODES": "2", "JOB_NODELIST": "node[1-2]", "CPUS_PER_TASK": "4", "GPUS_ON_NODE": "1"}
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "BOXSUP_SPILL": str(tmp_path / "spill")}
    env |= {f"SLURM_{name}": value for name, value in slurm.items()}
    command = ["bash", str(INFRA / "slurm.sh"), "python", "-m", "jobs.train", "demo"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 5, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert re.search(r"^ray start --head .*--num-cpus=4 --num-gpus=1 .*mode=token address=none$", calls, re.M), calls
    assert re.search(r"^ray start --address=127.0.0.1:20123 .*--object-spilling-directory=\S+ mode=token", calls, re.M)
    assert len(re.findall(r"^ray start --address", calls, re.M)) == 3
    assert len(re.findall("Ray ended with status 1 on .+: starting it again", done.stderr)) == 2
    assert "job -m jobs.train demo 127.0.0.1:20123" in calls
    assert (tmp_path / "seen").read_text() == "the-token\n" and "the-token" not in calls
    assert not list(tmp_path.glob(".ray-token-*"))
    assert stat.S_IMODE((tmp_path / "spill" / "ray-spill-123").stat().st_mode) == 0o700


def test_slurms_script_ends_the_job_before_its_cluster(tmp_path):
    """At SIGTERM, which Slurm sends before the end: a training saves a checkpoint, for which it needs Ray."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    trap = 'trap "sleep 0.5; echo saved >> calls; exit 143" TERM; touch running'
    last = f" *) {trap}; while true; do sleep 0.05; done;; esac"
    ray = 'trap "echo gone >> calls; exit" TERM; while true; do sleep 0.05; done'
    python = STAND_INS["python"].partition(" *)")[0].replace("= 4", "= 1")
    for name, body in {**STAND_INS, "ray": f"echo ray start >> calls; {ray}", "python": python + last}.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    slurm = {"JOB_ID": "123", "NNODES": "1", "JOB_NODELIST": "node1", "CPUS_PER_TASK": "4"}
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "BOXSUP_SPILL": str(tmp_path / "spill")}
    env |= {f"SLURM_{name}": value for name, value in slurm.items()}
    script = subprocess.Popen(["bash", str(INFRA / "slurm.sh"), "python", "-m", "jobs.train"], env=env, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "running").exists():
        assert script.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    script.terminate()
    assert script.wait(timeout=20) == 143
    said = [line for line in (tmp_path / "calls").read_text().splitlines() if line in ("saved", "gone")]
    assert said[0] == "saved"


def test_slurms_script_wants_a_job():
    done = subprocess.run(["bash", str(INFRA / "slurm.sh")], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
