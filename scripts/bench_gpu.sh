#!/usr/bin/env bash
# The lossless checks and the bench on a machine with CUDA, in under nine minutes on one large GPU.
#
#     scripts/bench_gpu.sh
#     SCALES="1b 3b" RESULTS=/tmp/results PYTHON=python3.12 scripts/bench_gpu.sh
#
# Needs: this checkout; a Python with a torch that sees the GPU (a driver, nvidia-smi) and
# all that `pip install -e ".[dev]"` brings (transformers, hydra-core, pydantic, pytest and others);
# no network. Disk: 26 GB for the pairs of all scales; weights on the GPU: 15 GB for 7b.
#
# SCALES   which widened pairs, of 1b 3b 7b (all); made on the device where they are missing
# RESULTS  where pairs and tables go (results/ of the checkout): RESULTS/bench/DEVICE/
# PYTHON   the interpreter (.venv/bin/python where there is one, else python3)
# MODE     engine.mode of the bench (graphs; the same steps are timed in eager beside it)
# METHODS  of conf/method, beside vanilla, sd and via_sd (one of a kind)
# OUT      a folder to copy the tables to, if set
# LIMIT    seconds for everything (530): each part has its own limit, and what is left of this one
#
# Exit code: 0, 1 where a part failed (one line each), 2 without CUDA or for an unknown scale.
set -u

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
SCALES=${SCALES:-1b 3b 7b}
RESULTS=${RESULTS:-$PWD/results}
MODE=${MODE:-graphs}
LIMIT=${LIMIT:-530}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
# One of each kind of drafter, stop rule and verifier, beside vanilla, sd and via_sd.
METHODS=${METHODS:-sd_heuristic,sd_cost_aware,adasd,lenience,prompt_lookup,self_sd,via_sd_budget,via_sd_deferral,via_sd_exact,via_sd_learned,via_sd_paper}
export VIASD_RESULTS=$RESULTS HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failures=0

refuse() {
  echo "bench_gpu: $*" >&2
  exit 2
}

# part NAME SECONDS COMMAND...: what it says goes to a log; one line for how it ended
part() {
  local name=$1 seconds=$2 start=$SECONDS code
  shift 2
  if [ $((LIMIT - SECONDS)) -lt "$seconds" ]; then seconds=$((LIMIT - SECONDS)); fi
  if [ "$seconds" -lt 1 ]; then
    echo "FAILED $name: no time is left of LIMIT=$LIMIT s"
    failures=$((failures + 1))
    return 1
  fi
  timeout -k 5 "$seconds" "$@" > "$LOGS/$name.log" 2>&1
  code=$?
  if [ "$code" -eq 0 ]; then
    echo "ok $name: $((SECONDS - start)) s"
    return 0
  fi
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
    echo "FAILED $name: not done after $seconds s"
  else
    echo "FAILED $name: exit code $code: $(tail -n 1 "$LOGS/$name.log")"
  fi
  failures=$((failures + 1))
  return 1
}

for scale in $SCALES; do
  case $scale in
    1b | 3b | 7b) ;;
    *) refuse "SCALES=$scale: accepted: 1b 3b 7b" ;;
  esac
done
command -v "$PYTHON" > /dev/null || refuse "PYTHON=$PYTHON: no such program"
command -v nvidia-smi > /dev/null || refuse "no CUDA: this machine has no nvidia-smi"
"$PYTHON" -c 'import torch' 2> /dev/null || refuse "PYTHON=$PYTHON has no torch"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null ||
  refuse "no CUDA: the torch of PYTHON=$PYTHON sees no device"

LOGS=$RESULTS/bench/logs
mkdir -p "$LOGS" || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$LOGS/device.txt"

checks=()
for path in tests/test_cuda.py tests/test_graphs.py; do
  if [ -f "$path" ]; then checks+=("$path"); fi
done
part checks 120 "$PYTHON" -m pytest "${checks[@]}"

for scale in $SCALES; do
  if [ ! -f "$RESULTS/pairs/reference_$scale/target/config.json" ]; then
    part "pair_$scale" 120 "$PYTHON" scripts/widen_pair.py --scale "$scale" --device cuda || continue
  fi
  part "bench_$scale" 150 "$PYTHON" -m experiments.bench pair=reference_wide "pair.scale=$scale" engine.device=cuda \
    engine.dtype=bfloat16 "engine.mode=$MODE" "methods=[$METHODS]" 'tasks=[reasoning]' prompts=3 repeats=2 \
    exact_prompts=0 step_repeats=8 startup_repeats=0 "results_dir=$RESULTS"
done

if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT" && cp -r "$RESULTS/bench" "$OUT/" || failures=$((failures + 1))
fi
echo "$failures parts failed; $SECONDS s; tables and logs: $RESULTS/bench"
[ "$failures" -eq 0 ]
