#!/usr/bin/env bash
# Makes the peers' environment, third_party/peers/.venv. Arguments go to pip, for example --index-url of builds of torch
# for the CPU alone (the default ones for Linux bring CUDA along; they measure the same).
# llama.cpp is compiled, which takes about ten minutes and a C++ compiler; WITHOUT_LLAMA_CPP=1 leaves it out.
set -euo pipefail
cd "$(dirname "$0")"
python3 -m venv .venv
.venv/bin/pip install --quiet "$@" torch==2.13.0
.venv/bin/pip install --quiet transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0
# The last release with PPO, for ppo_peer.py alone.
.venv/bin/pip install --quiet --no-deps --upgrade --target .trl-ppo trl==1.12.0
if [ -z "${WITHOUT_LLAMA_CPP:-}" ]; then
  .venv/bin/pip install --quiet llama-cpp-python==0.3.36
fi
.venv/bin/python -c 'from trl import RewardTrainer; import peft, torch, transformers; print("peers are ready: torch", torch.__version__)'
