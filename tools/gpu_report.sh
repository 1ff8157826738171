#!/usr/bin/env bash
# Measure one NVIDIA GPU: errors and speed of kernels, MFU of training steps, their memory compared with the formulas of
# `plan`, profiles, PyTorch's steps, and a short run on real text. Each step has a time limit, and its figures are written
# at once. The limits add up to 25 minutes; with less time, name the steps.
#   bash tools/gpu_report.sh OUT [--wheels FOLDER] [--only "STEP …"] [--text FILES] [--tiny]
# Nothing is installed from the network: missing packages are installed from the wheels in FOLDER. `--tiny` runs every
# step with a tiny model on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out="" wheels="" text="" only="kernels gpt2 t5 bert gpt350 gpt1300 moe torch train" tiny=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --wheels) wheels="$2"; shift 2 ;;
    --only) only="$2"; shift 2 ;;
    --text) text="$2"; shift 2 ;;
    --tiny) tiny=(--tiny); shift ;;
    -*) echo "gpu_report: unknown option $1" >&2; exit 2 ;;
    *) out="$1"; shift ;;
  esac
done
if [[ -z "$out" ]]; then
  echo "usage: bash tools/gpu_report.sh OUT [--wheels FOLDER] [--only \"STEP …\"] [--text FILES] [--tiny]" >&2
  exit 2
fi
mkdir -p "$out"
python="${PYTHON:-python3}"
site="$(mktemp -d)"
if [[ -n "$wheels" ]]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl || exit 1
fi
export PYTHONPATH="$site:tools:." PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$site/compiled}"
if [[ ${#tiny[@]} -eq 0 ]]; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/device.txt"
fi

# run SECONDS NAME COMMAND…: append the output of a command to OUT/NAME.jsonl, and its errors to OUT/NAME.log.
run() {
  local limit="$1" name="$2" started=$SECONDS code=0
  shift 2
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$out/$name.jsonl" 2>>"$out/$name.log" || code=$?
  echo "$name: $((SECONDS - started)) s, exit $code" | tee -a "$out/steps.txt"
  tail -n "${LINES_SHOWN:-3}" "$out/$name.jsonl"
  [[ $code -eq 0 ]] || tail -n 3 "$out/$name.log"
}

# step SECONDS NAME SHAPE: measure one training step.
step() {
  local limit="$1" name="$2"
  shift 2
  run "$limit" "$name" "$python" tools/gpu/step.py "$@" "${tiny[@]}" --profile "$out/profile_$name.txt"
}

for item in $only; do
  case "$item" in
    kernels)
      interpret=() cases=()
      [[ ${#tiny[@]} -eq 0 ]] || { interpret=(--interpret); cases=("T5 encoder"); }
      [[ -z "${KERNEL_CASES-}" ]] || IFS='|' read -ra cases <<<"$KERNEL_CASES"
      LINES_SHOWN=100 run 150 kernels "$python" tools/gpu/kernels.py "${interpret[@]}" "${cases[@]}"
      ;;
    blocks) LINES_SHOWN=100 run 120 blocks "$python" tools/gpu/kernels.py --blocks "T5 encoder" "GPT-3 packed" ;;
    gpt2) step 90 gpt2 "GPT-2 124M" ;;
    t5) step 150 t5 "T5-large" ;;
    bert) step 90 bert "BERT-large" ;;
    gpt350) step 90 gpt350 "GPT-3 350M" ;;
    gpt1300) step 120 gpt1300 "GPT-3 1.3B" ;;
    moe) step 150 moe "MoE 8 × 350M" ;;
    torch)
      for shape in "GPT-2 124M" "T5-large" "BERT-large" "GPT-3 1.3B" "GPT-3 350M"; do
        run "${TORCH_SECONDS:-75}" torch "$python" tools/gpu/torch_step.py "$shape" "${tiny[@]}"
      done
      ;;
    train)
      [[ -n "$text" ]] || { echo "train: no --text"; continue; }
      settings=(configs/gpt2/117m.yaml "data.files=$text" data.format=jsonl "run_dir=$out/run" data.cache_dir="$site/cache")
      settings+=(model.dropout=0 model.remat=none train.loss_chunks=1 train.batch_size=64 eval.every_steps=100 eval.batches=8)
      settings+=(checkpoint.every_steps=100000 tokenizer.byte_bpe.vocab=50257 optimizer.warmup_steps=100)
      settings+=("train.steps=${TRAIN_STEPS:-600}")
      if [[ ${#tiny[@]} -gt 0 ]]; then
        settings+=(model.layers=2 model.embed=32 model.heads=2 train.seq_len=32 train.batch_size=4 train.steps=4)
        settings+=(tokenizer.byte_bpe.vocab=270 model.vocab=270 optimizer.warmup_steps=2 eval.every_steps=4 train.peak_flops=1e9)
      fi
      run "${TRAIN_SECONDS:-300}" train "$python" -m t5x_lite train "${settings[@]}"
      cp "$out/run/metrics.jsonl" "$out/train_metrics.jsonl" 2>/dev/null || true
      ;;
    *) echo "gpu_report: unknown step $item" >&2; exit 2 ;;
  esac
done
rm -rf "$site"
