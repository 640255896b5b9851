#!/usr/bin/env bash
# Runs every stand-in on this machine's GPUs, for SECONDS; run again, it does what is missing.
#
#   experiments/standins.sh BASE_LM GSM8K MINILM GLUE SECONDS [WORKERS]
#
# BASE_LM, MINILM: folders of the two models; GSM8K, GLUE: folders of their data. WORKERS: processes in
# all (default: 10 a GPU; 12 ran out of 80 GB twice). Two experiments run at a time, so that the last
# runs of one leave no GPU idle. Records land in experiments/results/ (or RECORDS), one file a run, to be
# folded by `hrp-lab bench pack`; what runs share lands in a temporary folder (or SHARED). Seen on two H100: 240 steps/s on GSM8K, 550 on CoLA.
set -euo pipefail
if [ $# -lt 5 ] || ! command -v nvidia-cuda-mps-control > /dev/null; then
  echo "usage: $0 BASE_LM GSM8K MINILM GLUE SECONDS [WORKERS], beside an NVIDIA GPU" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
base_lm=$1 gsm8k=$2 minilm=$3 glue=$4 ends=$((SECONDS + $5))
workers=$((${6:-$((10 * $(nvidia-smi --list-gpus | wc -l)))} / 2))
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
  hrp-lab bench run "experiments/$1.yaml" --model_name_or_path "$2" --dataset_path "$3" \
    --records "$records/$1" --cache "$shared/cache" --workers "$workers" --cuda_graphs \
    --time_limit "$left" "${@:4}"
}

on_gsm8k() { run "$1" "$base_lm" "$gsm8k" --padding_free --torch_compile; }
on_glue() { run "$1" "$minilm" "$glue"; }

{
  on_gsm8k standin-gsm8k-450
  on_gsm8k standin-gsm8k-compute
  on_glue standin-cola
  on_glue standin-sst2
  on_glue standin-cola-preheating-rate
  on_gsm8k standin-ablation
  on_glue standin-glue-rule
  on_glue standin-cola-default
} &
on_gsm8k standin-gsm8k-930
on_gsm8k standin-gsm8k-compute-930
wait
