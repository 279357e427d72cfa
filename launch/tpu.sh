#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: queued resources, and the same command
# on all of its machines.
#
#   export ZONE=us-west4-a ACCELERATOR=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite
#   launch/tpu.sh create NAME         asks for the slice; SPOT=1: a spot slice
#   launch/tpu.sh wait NAME           until it is there
#   launch/tpu.sh setup NAME          copies this folder there and installs it
#   launch/tpu.sh train NAME --config=configs/vitg.py --workdir=gs://BUCKET/vitg
#   launch/tpu.sh logs NAME [WORKER]  follows the log of a machine (0)
#   launch/tpu.sh stop NAME           saves and ends the run, keeps the slice
#   launch/tpu.sh delete NAME         gives the slice back
#   launch/tpu.sh keep NAME --config=… --workdir=gs://…   all of these: creates,
#       trains, and when the slice is preempted asks for another and resumes
#
# The run goes on when the connection ends. A spot slice that is preempted
# saves first, where Google leaves the time; `keep`, or the same four commands
# after `delete`, resumes it.
#
#   PROJECT=NAME      of Google Cloud (as gcloud is set)
#   POLL_S=60         seconds between two looks at the slice
#   DRY_RUN=1         prints what would be run, except for `keep`
set -euo pipefail

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "tpu.sh: $1" >&2
  exit 2
}

need() {
  [[ -n ${!1:-} ]] || fail "$1 is not set: export $1=$2"
}

# Runs a command, or prints it under DRY_RUN.
run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpus() {
  run gcloud compute tpus "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
}

# Calls a function of this file in a shell of worker $1, or of `all`.
on_worker() {
  local worker=$1 call
  shift
  call=$(printf '%q ' "$@")
  tpus tpu-vm ssh "$name" "--worker=$worker" "--command=$(declare -f "$1")
$call"
}

create() {
  need ACCELERATOR v5litepod-256
  need RUNTIME v2-alpha-tpuv5-lite
  tpus queued-resources create "$name" "--node-id=$name" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
    ${SPOT:+--spot}
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, … or nothing: no such slice.
state() {
  gcloud compute tpus queued-resources list "--zone=$ZONE" \
    ${PROJECT:+"--project=$PROJECT"} "--filter=name~/$name\$" \
    '--format=value(state.state)'
}

# As `state`, but gcloud may fail a few times: no answer is not "no slice".
surely() {
  local try
  for try in 1 2 3 4 5; do
    state && return
    (( try == 5 )) || sleep "${POLL_S:-60}"
  done
  fail "gcloud does not answer; the run goes on, the same command returns to it"
}

wait_for() {
  [[ -z ${DRY_RUN:-} ]] || return 0
  local now last=
  while true; do
    now=$(surely) || exit
    [[ $now != ACTIVE ]] || return 0
    case $now in
      '' | FAILED | SUSPEND*) fail "slice $name is ${now:-not there}: \
launch/tpu.sh delete $name, then create it again" ;;
    esac
    [[ $now == "$last" ]] || echo "tpu.sh: $name: $now" >&2
    last=$now
    sleep "${POLL_S:-60}"
  done
}

# On a worker. TPU images have Python 3.10, which jax has left behind.
install_code() {
  set -e
  mkdir -p dinojax
  cd dinojax
  rm -rf dinojax configs
  tar -xzf ../dinojax.tar.gz
  if ! command -v python3.11 >/dev/null; then
    sudo add-apt-repository -y ppa:deadsnakes/ppa
    sudo apt-get install -qy python3.11-venv
  fi
  python3.11 -m venv .venv
  .venv/bin/python -m pip install -q --upgrade pip
  .venv/bin/python -m pip install -q --editable '.[tpu]'
}

# The files that the Dockerfile copies, as they are here.
setup() {
  local root archive
  root=$(cd "$(dirname "$0")/.." && pwd)
  archive=$(mktemp "${TMPDIR:-/tmp}/dinojax.XXXXXX")
  tar -czf "$archive" -C "$root" --exclude=__pycache__ \
    pyproject.toml requirements.txt constraints.txt README.md LICENSE configs dinojax
  tpus tpu-vm scp "$archive" "$name:dinojax.tar.gz" --worker=all
  rm -f "$archive"
  on_worker all install_code
}

# On a worker. Two runs would fight for the chips: the second is refused.
start_run() {
  cd dinojax || return
  if [ -f train.pid ] && kill -0 "$(cat train.pid)" 2>/dev/null; then
    echo 'a run is under way: stop it first' >&2
    return 1
  fi
  rm -f train.code
  (
    trap '' HUP
    .venv/bin/python -m dinojax.main --stopped_exit_code=143 "$@" &
    echo $! >train.pid
    code=0
    wait $! || code=$?
    echo $code >train.code
  ) >>train.log 2>&1 </dev/null &
}

train() {
  on_worker all start_run "$@"
}

# On a worker. Its exit code, or nothing while it goes on; 143 also after a
# reboot, which leaves no code.
end_of_run() {
  cd dinojax || return
  if [ -f train.code ]; then
    cat train.code
  elif ! kill -0 "$(cat train.pid)" 2>/dev/null; then
    echo 143
  fi
}

# On a worker.
is_running() {
  kill -0 "$(cat dinojax/train.pid)" 2>/dev/null
}

# On a worker.
follow_log() {
  tail -n 100 -F dinojax/train.log
}

logs() {
  on_worker "${1:-0}" follow_log
}

# On a worker. The processes agree on a step, save it and end.
stop_run() {
  [ -f dinojax/train.pid ] || return 0
  pid=$(cat dinojax/train.pid)
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do sleep 1; done
}

stop() {
  on_worker all stop_run
}

delete() {
  tpus queued-resources delete "$name" --force --quiet
}

# Looks at the run until it ends: 0 when training is over, 1 when the slice is
# gone, or still there and stopped for five looks: maintenance, a reboot.
# Workers that stop or fail may be the first sign of the former: wait and see.
watch() {
  local code now stopped=0
  while true; do
    now=$(surely) || exit
    [[ $now == ACTIVE ]] || return 1
    code=$(on_worker 0 end_of_run) || code=  # a slice that is going away
    case $code in
      '') stopped=0; sleep "${POLL_S:-60}" ;;
      143)
        (( ++stopped <= 5 )) || return 1
        sleep "${POLL_S:-60}" ;;
      0) return 0 ;;
      *)
        sleep $(( ${POLL_S:-60} * 5 ))
        now=$(surely) || exit
        [[ $now != ACTIVE ]] || fail "the run ended with exit code $code: \
launch/tpu.sh logs $name says why; launch/tpu.sh delete $name ends the slice" ;;
    esac
  done
}

# One slice after another, until training is over.
keep() {
  local now
  while true; do
    now=$(state)
    case $now in
      FAILED | SUSPEND*) delete; create ;;
      '') create ;;
    esac
    wait_for
    if [[ $now != ACTIVE ]] || ! on_worker 0 is_running; then
      setup
      train "$@"
    fi
    if watch; then
      delete
      return
    fi
    echo "tpu.sh: $name was preempted or restarted: resuming" >&2
  done
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  create | wait | setup | train | logs | stop | delete | keep) action=$1 ;;
  '') usage >&2; exit 2 ;;
  *) fail "'$1' is none of create wait setup train logs stop delete keep" ;;
esac
name=${2:-}
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
  fail "'$name' is not a name of lower-case letters, digits and dashes: \
launch/tpu.sh $action NAME"
need ZONE us-west4-a
shift 2
case $action in
  train | keep)
    (( $# )) || fail "launch/tpu.sh $action $name --config=FILE \
--workdir=gs://BUCKET/DIR"
    [[ " $*" == *" --workdir=gs://"* || " $*" == *" --workdir gs://"* ]] ||
      fail "--workdir must be on gs://: disks of a slice go with it" ;;
esac
[[ $action != keep || -z ${DRY_RUN:-} ]] ||
  fail 'keep does what create, wait, setup and train do: DRY_RUN those'
case $action in
  wait) wait_for ;;
  *) "$action" "$@" ;;
esac
