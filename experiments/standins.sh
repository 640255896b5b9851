#!/usr/bin/env bash
# Runs every stand-in on this machine's GPUs, for SECONDS; run again, it does what is missing.
#
#   experiments/standins.sh BASE_LM GSM8K MINILM GLUE SECONDS [WORKERS]
#
# BASE_LM, MINILM: folders of the two models; GSM8K, GLUE: folders of their data. WORKERS: processes in
# all (default: 10 a GPU; 12 ran out of 80 GB twice). Several experiments run at a time, so that the last
# runs of one leave no GPU idle; ONLY="A,B C" runs A, then B, and beside them C. Records land in experiments/results/ (or RECORDS), one file a run, to be
# folded by `hrp-lab bench pack`; what runs share lands in a temporary folder (or SHARED). Seen on two H100: 240 steps/s on GSM8K, 550 on CoLA.
set -euo pipefail
if [ $# -lt 5 ] || ! command -v nvidia-cuda-mps-control > /dev/null; then
  echo "usage: $0 BASE_LM GSM8K MINILM GLUE SECONDS [WORKERS], beside an NVIDIA GPU" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
base_lm=$1 gsm8k=$2 minilm=$3 glue=$4 ends=$((SECONDS + $5))
workers=${6:-$((10 * $(nvidia-smi --list-gpus | wc -l)))}
records=${RECORDS:-experiments/results} shared=${SHARED:-$(mktemp -d)}

# Small models leave a GPU idle unless its processes run side by side.
export CUDA_MPS_PIPE_DIRECTORY=$shared/mps CUDA_MPS_LOG_DIRECTORY=$shared/mps OMP_NUM_THREADS=1
# What one process compiles serves all.
export TORCHINDUCTOR_CACHE_DIR=$shared/inductor TRITON_CACHE_DIR=$shared/triton
export TORCHINDUCTOR_COMPILE_THREADS=1
mkdir -p "$shared/mps"
nvidia-cuda-mps-control -d
trap 'echo quit | nvidia-cuda-mps-control' EXIT

run() { # EXPERIMENT MODEL DATA FLAGS...
  local left=$((ends - SECONDS))
  [ "$left" -lt 60 ] && return
  echo "== $1, for at most $left s"
  hrp-lab bench run "experiments/$1.yaml" --model_name_or_path "$2" ${3:+--dataset_path "$3"} \
    --records "$records/$1" --cache "$shared/cache" --workers "$workers" --cuda_graphs \
    --time_limit "$left" "${@:4}"
}

on_gsm8k() { run "$1" "$base_lm" "$gsm8k" --padding_free --torch_compile; }
on_glue() { run "$1" "$minilm" "$glue"; }
on() {
  case $1 in
    *gsm8k* | *ablation) on_gsm8k "$1" ;;
    *function-names) run "$1" "$base_lm" "" --padding_free --torch_compile ;;
    *) on_glue "$1" ;;
  esac
}

# Each lane runs its experiments one after the other, beside the other lanes.
if [ -n "${ONLY:-}" ]; then
  IFS=' ' read -r -a lanes <<< "$ONLY"
else
  lanes=(
    standin-gsm8k-450,standin-gsm8k-compute,standin-cola,standin-sst2,standin-cola-preheating-rate,standin-ablation,standin-glue-rule,standin-cola-default
    standin-gsm8k-930,standin-gsm8k-compute-930
    kept-gsm8k-450,kept-gsm8k-r8,kept-gsm8k-r32,kept-cola
    kept-gsm8k-930,kept-gsm8k-r16,kept-gsm8k-tries,kept-gsm8k-warmup,kept-sst2,kept-classifiers-short
    kept-gsm8k-1860,kept-gsm8k-forgetting,kept-gsm8k-forgetting-930
    kept-gsm8k-variants,kept-function-names
  )
fi
workers=$((workers / ${#lanes[@]}))
[ "$workers" -gt 0 ] || workers=1
for lane in "${lanes[@]}"; do
  for experiment in ${lane//,/ }; do on "$experiment"; done &
  pids+=($!)
done
wait "${pids[@]}"
