#!/usr/bin/env bash
# Figures of an accelerator, in at most eight minutes and without a network: launch/device_check.sh [FOLDER]
#
# 1. an 8B model of random weights: a training step of local rewards, memory predicted and measured, decoding by rows
# 2. attention, gradients and sampling against their references on this device
# 3. the suites of launch/bench.py on the embedded model, where its file is there, with the peers that are installed
#
# Uses the Python that runs, with the JAX, torch and transformers that it finds. On a machine without an accelerator it
# runs part 1 on a tiny model, which shows that the script works and measures nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
folder="${1:-device_check}"
mkdir -p "$folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
end=$((SECONDS + 460))

part() { # NAME SECONDS COMMAND...: runs a part within what is left of the time; its failure does not end the others
  local name="$1" most="$2" left=$((end - SECONDS))
  shift 2
  if [ "$left" -lt 20 ]; then
    echo "== $name: no time left"
    return
  fi
  echo "== $name"
  timeout $((left < most ? left : most)) "$@" 2>&1 | tee "$folder/$name.txt"
  echo "exit ${PIPESTATUS[0]} after $((most)) s at most"
}

platform="$(python -c 'import jax; print(jax.default_backend())' 2>"$folder/jax.txt")" || {
  cat "$folder/jax.txt"
  echo "no JAX that works: install jax[cuda12] or jax[tpu]"
  exit 1
}
python -c 'import jax; print("jax", jax.__version__, jax.devices())' | tee "$folder/versions.txt"
python -m pip list 2>/dev/null | grep -iE '^(jax|flax|optax|torch|transformers|trl|vllm) ' | tee -a "$folder/versions.txt"

if [ "$platform" = cpu ]; then
  part large_model 120 python -m optimas_jax.bench.device --model=tiny --tokens=256 --rows=1,8 --json="$folder/device.json"
  echo "no accelerator: a GPU or TPU would be measured with an 8B model, and the suites below with their peers"
  exit 0
fi
part large_model 240 python -m optimas_jax.bench.device --json="$folder/device.json"
part correct 60 python -m pytest -q -n 0 -p no:cacheprovider tests/models/test_attention.py -k "chunked and every_token"
peers=()
for peer in torch trl; do
  python -c "import $peer" 2>/dev/null && peers+=("$peer")
done
echo "peers here: ${peers[*]:-none}"
# Peers run in an environment of their own; without one, in one that sees the packages of this one.
if [ ! -e third_party/peers/.venv ]; then
  python -m venv --without-pip third_party/peers/.venv
  own="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  echo "$own" >"$(third_party/peers/.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/own.pth"
fi
of_suite() { # the peer that does the work of a suite
  case "$1" in
    lrf_train) [[ " ${peers[*]-} " == *" trl "* ]] && echo trl || echo none ;;
    *) [[ " ${peers[*]-} " == *" torch "* ]] && echo torch || echo none ;;
  esac
}
for suite in lrf_score lrf_train generate; do
  part "$suite" 60 python launch/bench.py --suite="$suite" --peer="$(of_suite "$suite")" --repeats=3 --json="$folder/$suite.json"
done
