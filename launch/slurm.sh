#!/usr/bin/env bash
# Trains on Slurm: one process a node, which drives all its GPUs.
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/vitl.py --workdir=DIR
#
# DIR is on a disk that all nodes see. Options of sbatch before the script
# replace its #SBATCH lines: --time, --partition, --gpus-per-node.
#
# Three minutes before the time is over all processes save the same step, and
# the job goes back to the queue, again and again until training has ended.
# Preempted jobs save and come back as well; `scancel JOB` saves and ends.
#
#   PYTHON=.venv/bin/python   the interpreter, seen by all nodes (python3)
#   DRY_RUN=1                 prints what would be run
#
#SBATCH --job-name=dinojax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -euo pipefail

usage() {
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac

# srun does not take --cpus-per-task from sbatch, and leaves the others waiting
# when one process is lost.
command=(srun --kill-on-bad-exit=1
  "--cpus-per-task=${SLURM_CPUS_PER_TASK:-64}"
  "${PYTHON:-python3}" -m dinojax.main "$@")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "slurm.sh: not inside a job: sbatch launch/slurm.sh $*" >&2
  exit 2
fi

# Slurm sends USR1 to this script alone, so that the end of the time is not
# mistaken for a scancel. srun would answer SIGTERM by SIGKILL for all:
# scancel sends it to the processes, and to those only.
requeue=
# shellcheck disable=SC2329  # the trap calls it
stop() {
  requeue=1
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1

"${command[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true  # a signal ends the waiting, not the step
done
code=0
wait "$step" || code=$?  # bash remembers
if [[ -n $requeue && $code == 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
