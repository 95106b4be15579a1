#!/usr/bin/env bash
# Every optimiser at equal cost on the embedded questions with five seeds, and four of them on real rows of three
# benchmarks, two cells at a time. The same command resumes.
#
#   bash launch/comparison.sh DATA [FOLDER]
#
# DATA has hotpotqa/dev.jsonl, amazon/dev.jsonl and pubmedqa/dev.jsonl; results go to FOLDER (runs/comparison). First pip install -e '.[compare,tpe]' and
# third_party/peers/install_prompt_optimizers.sh.
set -euo pipefail

here=$(realpath "$(dirname "$0")/..")
data=$(realpath --relative-to="$here" "${1:?folder with hotpotqa/dev.jsonl, amazon/dev.jsonl and pubmedqa/dev.jsonl}")
out=$(realpath -m "${2:-runs/comparison}")
cd "$here"

ours=ours,random,twin,bare,opro,opro-global,copro,copro-global,mipro,mipro-global,reflect,reflect-global,random-search
# data seed: 1,000 + the first six hex digits of the commit that froze the defaults, c080cf7
python launch/compare.py --config=configs/hotpotqa.py --config.data.seed=12616887 --optimizers="$ours,dspy-miprov2,dspy-copro,dspy-gepa,textgrad" \
  --budget=100000 --seeds=0,1,2,3,4 --jobs=2 --workdir="$out/embedded"

real() { # NAME BUDGET [FLAGS]
  python launch/compare.py --config="configs/$1.py:local" --config.data.path="$data/$1/dev.jsonl" "${@:3}" \
    --optimizers=ours,random,twin,bare,dspy-miprov2 --budget="$2" --seeds=0 --jobs=2 --workdir="$out/$1"
}
real hotpotqa 100000
# prompts instead of adapters, which the others cannot tune; requests are long here
real amazon 150000 --config.system.weights=
real pubmedqa 100000
