"""The exact commands for Google Cloud and GKE, with stand-ins."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.launch import fakes

TPU = {'ZONE': 'us-west4-a', 'ACCELERATOR': 'v5litepod-256',
       'RUNTIME': 'v2-alpha-tpuv5-lite', 'POLL_S': '0'}
SSH = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'my-run']
XPK = {'CLUSTER': 'c', 'IMAGE': 'gcr.io/p/dinojax', 'TPU_TYPE': 'v5litepod-16'}
# Values that a careless script would hand to a shell.
ARGUMENTS = ['--config=configs/vitg.py', '--workdir=gs://b/a run',
             '--config.data.train=folder:$(touch no);x']


@pytest.fixture
def fake(tmp_path):
  return fakes.Fakes(tmp_path, 'gcloud', 'xpk')


def actions(fake):
  """What each call did: create, list, scp, ssh and the function it runs."""
  for words in fake.calls():
    command = [w for w in words if w.startswith('--command=')]
    yield words[4] if not command else (
        'ssh ' + command[0].splitlines()[-1].split()[0])


@pytest.mark.parametrize('spot', [False, True])
def test_a_slice_is_asked_for(fake, spot):
  done = fake.run('tpu.sh', 'create', 'my-run', PROJECT='p', **TPU,
                  **({'SPOT': '1'} if spot else {}))
  assert done.returncode == 0, done.stderr
  assert fake.calls() == [
      ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'my-run',
       '--node-id=my-run', '--accelerator-type=v5litepod-256',
       '--runtime-version=v2-alpha-tpuv5-lite', *(['--spot'] if spot else []),
       '--zone=us-west4-a', '--project=p']]


def test_waiting_ends_when_the_slice_is_there(fake):
  fake.reply('list', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')
  done = fake.run('tpu.sh', 'wait', 'my-run', **TPU)
  assert done.returncode == 0, done.stderr
  assert len(fake.calls()) == 3
  assert '--filter=name~/my-run$' in fake.calls()[0]


def test_a_lost_slice_is_said(fake):
  fake.reply('list', 'SUSPENDED')
  done = fake.run('tpu.sh', 'wait', 'my-run', **TPU)
  assert done.returncode == 2
  assert 'SUSPENDED: launch/tpu.sh delete my-run' in done.stderr


def test_the_code_goes_to_every_machine(fake):
  done = fake.run('tpu.sh', 'setup', 'my-run', **TPU)
  assert done.returncode == 0, done.stderr
  assert list(actions(fake)) == ['scp', 'ssh install_code']
  for words in fake.calls():
    assert '--worker=all' in words and '--zone=us-west4-a' in words


def test_every_machine_runs_the_same_command(fake, tmp_path):
  done = fake.run('tpu.sh', 'train', 'my-run', *ARGUMENTS, **TPU)
  assert done.returncode == 0, done.stderr
  words, = fake.calls()
  assert words[:7] == [*SSH, '--worker=all']
  # What the machine would do, with a stand-in for its interpreter.
  home = tmp_path / 'dinojax'
  (home / '.venv/bin').mkdir(parents=True)
  python = home / '.venv/bin/python'
  python.write_text(f'#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n')
  python.chmod(0o755)
  script = words[7].removeprefix('--command=')
  subprocess.run(['bash', '-c', script + '\nwait'], cwd=tmp_path, check=True)
  assert (home / 'train.log').read_text() == repr(
      ['-m', 'dinojax.main', '--stopped_exit_code=143', *ARGUMENTS]) + '\n'
  assert (home / 'train.code').read_text() == '0\n'
  assert not (tmp_path / 'no').exists()


def test_a_preempted_run_continues_on_another_slice(fake):
  fake.reply('list', '', 'ACTIVE', 'ACTIVE',  # the first slice, until here:
             'SUSPENDED', 'SUSPENDED', 'ACTIVE')
  fake.reply('end_of_run', '143', '', '0')
  done = fake.run('tpu.sh', 'keep', 'my-run', *ARGUMENTS, **TPU)
  assert done.returncode == 0, done.stderr
  assert 'was preempted' in done.stderr
  begin = ['create', 'list', 'scp', 'ssh install_code', 'ssh start_run']
  assert list(actions(fake)) == [
      'list', *begin, 'list', 'ssh end_of_run', 'list',
      'list', 'delete', *begin, 'list', 'ssh end_of_run',
      'list', 'ssh end_of_run', 'delete']


def test_a_run_that_fails_keeps_its_slice(fake):
  fake.reply('list', 'ACTIVE')
  fake.reply('end_of_run', '2')
  done = fake.run('tpu.sh', 'keep', 'my-run', *ARGUMENTS, **TPU)
  assert done.returncode == 2
  assert 'exit code 2: launch/tpu.sh logs my-run' in done.stderr
  assert 'delete' not in actions(fake)


def test_an_error_of_gcloud_is_not_taken_for_an_answer(fake):
  fake.reply('list', '', code=1)
  done = fake.run('tpu.sh', 'keep', 'my-run', *ARGUMENTS, **TPU)
  assert done.returncode == 1
  assert list(actions(fake)) == ['list']  # above all: nothing was created


def test_a_workload_of_gke(fake):
  done = fake.run('xpk.sh', 'my-run', *ARGUMENTS, **XPK)
  assert done.returncode == 0, done.stderr
  words, = fake.calls()
  assert words[:-1] == [
      'xpk', 'workload', 'create', '--workload=my-run', '--cluster=c',
      '--tpu-type=v5litepod-16', '--num-slices=1',
      '--docker-image=gcr.io/p/dinojax', '--max-restarts=100',
      '--termination-grace-period-seconds=180']
  assert shlex.split(words[-1].removeprefix('--command=')) == [
      'exec', 'python', '-m', 'dinojax.main', '--stopped_exit_code=143',
      *ARGUMENTS]


@pytest.mark.parametrize('words', [
    ['tpu.sh', 'create', 'my-run'], ['tpu.sh', 'setup', 'my-run'],
    ['tpu.sh', 'train', 'my-run', *ARGUMENTS], ['tpu.sh', 'stop', 'my-run'],
    ['tpu.sh', 'delete', 'my-run'], ['xpk.sh', 'my-run', *ARGUMENTS]])
def test_a_dry_run_says_what_a_run_does(fake, words):
  process = fake.run(*words, DRY_RUN='1', **TPU, **XPK)
  assert process.returncode == 0 and not fake.calls()
  fake.run(*words, **TPU, **XPK)
  plain = subprocess.run(  # bash quotes newlines as no other reader knows
      ['bash', '-c', f'printf "%s\\0" {process.stdout.replace(chr(10), " ")}'],
      capture_output=True, text=True, check=True).stdout.split('\0')[:-1]
  archive = re.compile(r'dinojax\.\w{6}$')
  mask = lambda words: [archive.sub('ARCHIVE', word) for word in words]
  assert mask(plain) == mask(sum(fake.calls(), []))


@pytest.mark.parametrize('words, variables, text', [
    (['tpu.sh', 'crate', 'x'], TPU, "'crate' is none of create wait"),
    (['tpu.sh', 'create'], TPU, "'' is not a name"),
    (['tpu.sh', 'create', 'a;b'], TPU, "'a;b' is not a name"),
    (['tpu.sh', 'create', 'x'], {}, 'ZONE is not set: export ZONE='),
    (['tpu.sh', 'create', 'x'], {'ZONE': 'z'}, 'ACCELERATOR is not set'),
    (['tpu.sh', 'train', 'x'], TPU, 'train x --config=FILE'),
    (['xpk.sh', 'Big', '--config=a'], XPK, "'Big' is not a name"),
    (['xpk.sh', 'my-run'], XPK, 'my-run --config=FILE'),
    (['xpk.sh', 'my-run', '--config=a'], {}, 'CLUSTER is not set'),
    (['xpk.sh', 'my-run', '--config=a', '--workdir=runs/x'], XPK,
     'must be on gs://'),
])
def test_what_is_missing_is_said(fake, words, variables, text):
  done = fake.run(*words, **variables)
  assert done.returncode == 2
  assert text in done.stderr
  assert not fake.calls()
