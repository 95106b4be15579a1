#!/bin/bash
# One run on a TPU slice without Kubernetes: launch/pod/tpu.sh NAME ZONE [flags of launch/run.py]
# The slice is there already, with the program in ~/optimas_jax and its environment on every machine:
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='git clone https://github.com/OWNER/optimas_jax && cd optimas_jax && pip install uv &&
#       python3 -m uv venv --python 3.11 .venv && python3 -m uv pip install --python .venv/bin/python -e ".[tpu]"'
# The first machine runs everything and has the run folder, the others compute with it. A process that dies ends all
# within a minute; the same command goes on where the run was.
set -euo pipefail
name=$1 zone=$2
shift 2
flags=$(printf ' %q' --config=configs/hotpotqa.py:paper --workdir=runs/tpu "$@" --coordinator=auto)
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd optimas_jax && exec .venv/bin/python launch/run.py$flags"
