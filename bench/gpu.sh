#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in parts of ten minutes at most:
#
#   bench/gpu.sh FOLDER [PART ...]       PARTS: machine numerics wide narrow
#                                        vits vitl deterministic repeat; all of
#                                        them by default
#
# FOLDER/results.jsonl gets one line a figure, FOLDER/PART.log all that was
# said. SMOKE=1 runs every part on a CPU, on tiny shapes. VITS_BATCH and
# VITL_BATCH are the images of a step; PYTHON is the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
: "${1:?usage: bench/gpu.sh FOLDER [PART ...]}"
folder=$1
shift
mkdir -p "$folder"
python=${PYTHON:-python}
smoke=${SMOKE:-}
failed=0

if [ -n "$smoke" ]; then
  export JAX_PLATFORMS=cpu
  kernel_tests=(-k 'bfloat16_stays')
  shapes=(--interpret --tokens=17 --total_tokens=17 --repeats=1)
  few=(--steps=1)
  vits=(--config=configs/vits.py:smoke --set)
  vitl=(--config=configs/vitl.py:smoke)
  repeat=(--config=configs/vits.py:smoke --steps=8 --set)
  wide=1x128 narrow=1x64 forms=(xla head_major) tried=(xla)
else
  if ! "$python" -c 'import jax, sys
sys.exit(jax.devices()[0].platform != "gpu")'; then
    echo "error: JAX finds no GPU: run this where nvidia-smi shows one, after" \
      "pip install -e '.[cuda13]'; SMOKE=1 runs it on a CPU" >&2
    exit 2
  fi
  export JAX_PLATFORMS=cuda
  # The rest needs eight devices.
  kernel_tests=(-k 'not mesh')
  shapes=()
  few=(--steps=20)
  vits=(--config=configs/vits.py
        --set train.batch_size="${VITS_BATCH:-256}")
  # ViT-L/14 instead of /16: 257 and 50 tokens.
  vitl=(--config=configs/vitl.py
        --set train.batch_size="${VITL_BATCH:-128}" model.patch_px=14
        crops.local_px=98)
  repeat=(--config=configs/vits.py --steps=40 --set train.batch_size=64
          data.train=photos:train)
  wide=32x128 narrow=16x64 forms=(gpu_cudnn cudnn xla) tried=(gpu_cudnn cudnn)
fi

# What a command prints goes to the log; lines that are JSON, to the results.
keep() {
  local part=$1
  shift
  timeout 600 "$@" 2>&1 | tee -a "$folder/$part.log" |
    { grep '^{' || true; } | tee -a "$folder/results.jsonl"
  local status=${PIPESTATUS[0]}
  if [ "$status" -ne 0 ]; then
    echo "error: part $part ended with status $status; its last words:" >&2
    tail -n 5 "$folder/$part.log" >&2
    failed=1
  fi
}

attention_of() {
  keep "$1" "$python" -m bench.attention_gpu --heads="$2" \
    ${shapes[@]+"${shapes[@]}"}
}

steps_of() {
  local part=$1 form
  shift
  for form in "${forms[@]}"; do
    keep "$part" "$python" -m bench.step_speed --attention="$form" \
      "${few[@]}" "$@"
  done
}

# Bits that a second run has, with operations that differ and without.
repeats_of() {
  local part=$1 form value
  shift
  for value in False True; do
    for form in "${tried[@]}"; do
      keep "$part" "$python" -m bench.repeat "$@" data.validation=None \
        train.deterministic="$value" model.attention="$form" \
        --folder="$(mktemp -d)/runs"
    done
  done
}

run_part() {
  case $1 in
    machine)
      [ -n "$smoke" ] || keep machine nvidia-smi \
        --query-gpu=name,memory.total,driver_version --format=csv,noheader
      keep machine "$python" -c 'import jax, json, sys; print(json.dumps({
        "python": sys.version.split()[0], "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].client.platform_version}))' ;;
    numerics)
      keep numerics "$python" -m pytest -q tests/kernels/test_attention_gpu.py \
        "${kernel_tests[@]}" ;;
    wide) attention_of wide "$wide" ;;
    narrow) attention_of narrow "$narrow" ;;
    vits) steps_of vits "${vits[@]}" ;;
    vitl) steps_of vitl "${vitl[@]}" ;;
    deterministic)
      steps_of deterministic "${vits[@]}" train.deterministic=True ;;
    repeat) repeats_of repeat "${repeat[@]}" ;;
    *)
      echo "error: PART=$1 is not known: machine, numerics, wide, narrow," \
        "vits, vitl, deterministic or repeat" >&2
      exit 2 ;;
  esac
}

[ $# -gt 0 ] ||
  set -- machine numerics narrow wide vits vitl deterministic repeat
for part; do
  run_part "$part"
done
exit "$failed"
