#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk has made.
# https://github.com/AI-Hypercomputer/xpk
#
#   docker build --build-arg EXTRA=tpu --tag IMAGE . && docker push IMAGE
#   export CLUSTER=my-cluster IMAGE=… TPU_TYPE=v5litepod-256
#   launch/xpk.sh NAME --config=configs/vitg.py --workdir=gs://BUCKET/vitg
#
# A slice that is lost is started again, RESTARTS times: the run resumes from
# its last checkpoint. A pod that must go has GRACE_S seconds to save.
# `xpk workload list` shows it, `xpk workload delete` ends it.
#
#   PROJECT=NAME ZONE=NAME   of Google Cloud (as gcloud is set)
#   RESTARTS=100  GRACE_S=180
#   DRY_RUN=1                prints what would be run
set -euo pipefail

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "xpk.sh: $1" >&2
  exit 2
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac
name=$1
shift
[[ $name =~ ^[a-z][a-z0-9-]{0,38}[a-z0-9]$ ]] ||
  fail "'$name' is not a name of 2 to 40 lower-case letters, digits and dashes"
(( $# )) || fail "launch/xpk.sh $name --config=FILE --workdir=gs://BUCKET/DIR"
for variable in CLUSTER IMAGE TPU_TYPE; do
  [[ -n ${!variable:-} ]] || fail "$variable is not set: export $variable=…"
done

[[ " $*" == *" --workdir=gs://"* || " $*" == *" --workdir gs://"* ]] ||
  fail '--workdir must be on gs://: the disk of a pod goes with it'

# exec: xpk's own shell passes SIGTERM to its child, which must be Python.
# 143: xpk takes 0 for the end of training and 1 to 126 for a mistake, and
# starts again after other codes.
program=$(printf '%q ' exec python -m dinojax.main --stopped_exit_code=143 "$@")
command=(xpk workload create "--workload=$name" "--cluster=$CLUSTER"
  "--tpu-type=$TPU_TYPE" --num-slices=1 "--docker-image=$IMAGE"
  "--max-restarts=${RESTARTS:-100}"
  "--termination-grace-period-seconds=${GRACE_S:-180}"
  ${PROJECT:+"--project=$PROJECT"} ${ZONE:+"--zone=$ZONE"}
  "--command=${program% }")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
