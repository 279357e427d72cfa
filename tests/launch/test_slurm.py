"""The Slurm job: what it runs, and when it goes back to the queue."""

import re
import signal
import subprocess
import time

import pytest

from tests.launch import fakes

ARGUMENTS = ['--config=configs/vitl.py', '--workdir=a run']
# Trains until scancel asks it to stop.
_SRUN = '''#!/bin/bash
touch "$HOME/started"
until [[ -e $HOME/stopped ]]; do sleep 0.05; done
exit $(<"$HOME/stopped")
'''


@pytest.fixture
def fake(tmp_path):
  return fakes.Fakes(tmp_path, 'srun', 'scancel', 'scontrol')


def test_one_process_a_node(fake):
  done = fake.run('slurm.sh', *ARGUMENTS, SLURM_JOB_ID='7', PYTHON='python',
                  SLURM_CPUS_PER_TASK='32')
  assert done.returncode == 0, done.stderr
  assert fake.calls() == [
      ['srun', '--kill-on-bad-exit=1', '--cpus-per-task=32', 'python', '-m',
       'dinojax.main', *ARGUMENTS]]
  options = re.findall(
      r'^#SBATCH (.*)', (fakes.LAUNCH / 'slurm.sh').read_text(), re.M)
  assert {'--ntasks-per-node=1', '--requeue', '--signal=B:USR1@180',
          '--open-mode=append'} < set(options)


def test_a_run_that_fails_is_not_started_again(fake):
  fake.reply('srun', '', code=2)
  done = fake.run('slurm.sh', *ARGUMENTS, SLURM_JOB_ID='7')
  assert done.returncode == 2
  assert [words[0] for words in fake.calls()] == ['srun']


@pytest.mark.parametrize('code', [0, 1])
def test_before_the_end_of_the_time_it_saves_and_returns(fake, tmp_path, code):
  (tmp_path / 'srun').write_text(_SRUN)
  scancel = tmp_path / 'scancel'
  scancel.write_text(scancel.read_text() + (
      f'(here / "stopped").write_text("{code}")\n'))
  process = subprocess.Popen(
      ['bash', str(fakes.LAUNCH / 'slurm.sh'), *ARGUMENTS],
      env=fake.environment() | {'SLURM_JOB_ID': '7'})
  while not (tmp_path / 'started').exists():
    time.sleep(0.05)
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=60) == code
  asked = [['scancel', '--signal=TERM', '7']]
  if code == 0:  # else the state was not saved: repeating would not help
    asked.append(['scontrol', 'requeue', '7'])
  assert fake.calls() == asked


def test_outside_a_job_it_says_how_to_start_one(fake):
  done = fake.run('slurm.sh', *ARGUMENTS)
  assert done.returncode == 2 and 'sbatch launch/slurm.sh' in done.stderr
  assert not fake.calls()
