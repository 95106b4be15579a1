#!/usr/bin/env bash
# Makes the environment of the prompt optimisers that launch/compare.py runs beside ours, third_party/peers/.prompt-optimizers.
# Arguments go to pip.
set -euo pipefail
cd "$(dirname "$0")"
python3 -m venv .prompt-optimizers
.prompt-optimizers/bin/pip install --quiet "$@" dspy==3.4.1 optuna==5.0.0 textgrad==0.1.8 trace-opt==0.1.3.8
python="$PWD/.prompt-optimizers/bin/python"
cd "$(mktemp -d)" # TextGrad leaves logs where it is imported
LITELLM_LOCAL_MODEL_COST_MAP=True "$python" -c 'import dspy, gepa, opto, textgrad; print("prompt optimisers are ready: dspy", dspy.__version__)'
