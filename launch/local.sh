#!/usr/bin/env bash
# Trains with several processes on this machine: the same run, the same
# results as one process, resumed by the same command.
#
#   launch/local.sh 2 --config=configs/vits.py:smoke --workdir=runs/two
#
# GPUs are divided equally; 8 processes on 8 GPUs drive one each. On a CPU
# (JAX_PLATFORMS=cpu, or no GPU) every process has DEVICES_PER_PROCESS devices.
#
#   DEVICES_PER_PROCESS=4   CPU devices of a process (1)
#   LOG_DIR=DIR             logs of all processes but the first (a new folder)
#   PYTHON=.venv/bin/python the interpreter (python3)
#   DRY_RUN=1               prints what would be run
#
# Ctrl-C, SIGTERM or a closed terminal saves and ends all processes; again: ends
# them at once.
set -euo pipefail

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
  *[!0-9]* | 0*) fail "'$1' is not a number of processes: launch/local.sh 2 \
--config=FILE --workdir=DIR" ;;
esac
count=$1
shift
(( $# )) || fail 'no arguments for the program: add --config=FILE --workdir=DIR'
python=${PYTHON:-python3}
arguments=("$@")

# One GPU a line: those that CUDA_VISIBLE_DEVICES allows, or all.
list_gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    return
  elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^$/d'
  elif command -v nvidia-smi >/dev/null; then
    # Without a driver nvidia-smi complains on stdout: only GPUs count.
    { nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true; } |
      sed -n '/^[0-9][0-9]*$/p'
  fi
}

gpus=()
while read -r gpu; do gpus+=("$gpu"); done < <(list_gpus)
share=0
if (( ${#gpus[@]} )); then
  (( ${#gpus[@]} % count == 0 )) || fail "${#gpus[@]} GPUs cannot be divided \
among $count processes equally: use a divisor of ${#gpus[@]}, or choose GPUs \
by CUDA_VISIBLE_DEVICES"
  share=$(( ${#gpus[@]} / count ))
fi

# The port is free now, and taken again before anybody else is likely to.
port=$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])') || fail "PYTHON=$python does not run"

# Sets `words` to the command of process $1.
words_of() {
  words=(env "JAX_COORDINATOR_ADDRESS=localhost:$port"
    "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1")
  if (( share )); then
    local IFS=,
    words+=("CUDA_VISIBLE_DEVICES=${gpus[*]:$(( $1 * share )):share}")
  else
    words+=("JAX_NUM_CPU_DEVICES=${DEVICES_PER_PROCESS:-1}")
  fi
  words+=("$python" -m dinojax.main "${arguments[@]}")
}

if [[ -n ${DRY_RUN:-} ]]; then
  for (( i = 0; i < count; i++ )); do
    words_of "$i"
    printf '%q ' "${words[@]}"
    echo
  done
  exit 0
fi

logs=${LOG_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/dinojax.XXXXXX")}
mkdir -p "$logs"
pids=()
stopping=0

log_of() {
  echo "$logs/process_$1.log"
}

# Sends signal $1 to every process, with the workers that it started if $2.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" -- "${2:-}$pid" 2>/dev/null || true
  done
}

# shellcheck disable=SC2329  # the trap calls it
stop() {
  stopping=$(( stopping + 1 ))
  if (( stopping == 1 )); then
    echo 'local.sh: stopping all processes: each saves first' >&2 || true
    signal_all TERM
  else
    echo 'local.sh: stopped at once' >&2 || true
    signal_all KILL -
    exit 130
  fi
}
trap stop INT TERM HUP
trap 'signal_all KILL -; wait 2>/dev/null' EXIT

# A process group each: Ctrl-C reaches this script alone, which passes it on.
set -m
for (( i = 0; i < count; i++ )); do
  words_of "$i"
  if (( i )); then
    "${words[@]}" </dev/null >"$(log_of "$i")" 2>&1 &
  else
    "${words[@]}" </dev/null &
  fi
  pids+=("$!")
done
set +m
(( count == 1 )) || echo "local.sh: logs of processes 1 to $(( count - 1 )): \
$logs" >&2

# Process $1 ended with $2: the others wait for it for ever, so they end too,
# after a moment for what they have to say.
give_up() {
  sleep 2
  signal_all KILL -
  {
    (( $1 == 0 )) || tail -n 20 "$(log_of "$1")"
    echo "local.sh: process $1 of $count ended with exit code $2; the others \
are stopped. Mend the cause and start the same command again: it resumes from \
the last checkpoint"
    (( $1 == 0 )) || echo "local.sh: its whole log: $(log_of "$1")"
  } >&2
  exit "$2"
}

running=$count
status=0
done_=()
while (( running )); do
  for (( i = 0; i < count; i++ )); do
    if [[ -z ${done_[i]:-} ]] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      code=0
      { wait "${pids[i]}"; } 2>/dev/null || code=$?  # bash would say "Killed"
      (( code == 0 || stopping )) || give_up "$i" "$code"
      (( code == 0 )) || status=$code
      done_[i]=1
      running=$(( running - 1 ))
    fi
  done
  (( running == 0 )) || sleep 0.2
done
exit "$status"
