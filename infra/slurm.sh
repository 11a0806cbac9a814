#!/usr/bin/env bash
# A Ray cluster over the nodes that Slurm allocates, and one job on it:
#
#   sbatch --nodes=4 --gpus-per-node=4 --cpus-per-task=64 infra/slurm.sh python -m jobs.train paper --run-dir /shared/runs/a ...
#
# Submit it from the repository, where `make setup` made .venv, on a file system that all nodes share. The job's exit status
# is the batch job's. BOXSUP_SPILL names a node-local folder for spilled objects (default: TMPDIR, else /tmp).
#SBATCH --job-name=boxsup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120  # before the end, so that a training can save

set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch infra/slurm.sh python -m jobs.NAME ..." >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"

# The token lives as long as the job, in a file that only its user can read; no process has its value as an argument.
private=$(mktemp --directory "$PWD/.ray-token-$SLURM_JOB_ID-XXXXXX")
# Steps end with their srun; the trap ends only what this script started.
trap 'trap - TERM; kill $(jobs -p) 2>/dev/null || true; rm -rf "$private"' EXIT
# The job first: a training saves a checkpoint, for which it needs its cluster, and ends within 30 s.
job=
end() {
    trap - TERM
    if [ -n "$job" ]; then
        kill "$job" 2>/dev/null || true
        wait "$job" || true
    fi
    exit 143
}
trap end TERM
python -c "import secrets; print(secrets.token_hex(32))" > "$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token" RAY_USAGE_STATS_ENABLED=0

spill="${BOXSUP_SPILL:-${TMPDIR:-/tmp}}/ray-spill-$SLURM_JOB_ID"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # `| head` would end scontrol, and this script, by SIGPIPE
head=${nodes[0]}
head_ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$head_ip:$port"
node=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-spilling-directory="$spill")

# Spilled objects are the job's data: only its user may read them, and nobody else may have made the folder before.
# shellcheck disable=SC2016  # each node's own bash expands the words in single quotes, here and below
srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
    bash -c 'mkdir --parents --mode=0700 "$0" && test -O "$0"' "$spill"

# --overlap: the driver below runs on the head's node beside it.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    env -u RAY_ADDRESS ray start --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 "${node[@]}" &
if [ "$SLURM_NNODES" -gt 1 ]; then
    # A node waits until the head answers. It starts Ray again when that took too long or ended; the trap ends its loop.
    # shellcheck disable=SC2016
    join='head_ip=$0 port=$1; shift
        trap "kill \$ray 2>/dev/null; exit 143" TERM
        while true; do
            until timeout 5 bash -c "</dev/tcp/$head_ip/$port"; do sleep 2; done 2>/dev/null
            ray start "$@" & ray=$!
            wait $ray && exit
            echo "Ray ended with status $? on $HOSTNAME: starting it again" >&2
            sleep 2
        done'
    srun --overlap --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        --cpus-per-task="$SLURM_CPUS_PER_TASK" env -u RAY_ADDRESS \
        bash -c "$join" "$head_ip" "$port" --address="$RAY_ADDRESS" "${node[@]}" &
fi

# In the background, as bash takes a signal only between its own commands; all nodes first: jobs fit themselves to them.
python - "$SLURM_NNODES" <<'PYTHON' &
import sys, time
import ray

deadline = time.monotonic() + 600
while True:
    try:
        ray.init(address="auto", logging_level="ERROR")
        break
    except ConnectionError:
        if time.monotonic() > deadline:
            raise
        time.sleep(5)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit("some nodes did not join within ten minutes")
    time.sleep(2)
PYTHON
wait $!

"$@" &
job=$!
wait "$job"
