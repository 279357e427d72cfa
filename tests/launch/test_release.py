"""The workflow that publishes: pinned, with no more rights than it needs."""

import re
import tomllib

import pytest
import yaml

from tests.launch import fakes

TEXT = (fakes.ROOT / '.github/workflows/release.yml').read_text()
JOBS = yaml.safe_load(TEXT)['jobs']
STEPS = [(name, step) for name, job in JOBS.items() for step in job['steps']]


def test_every_action_is_pinned_to_a_commit():
  uses = [step['uses'] for _, step in STEPS if 'uses' in step]
  assert len(uses) > 8
  for action in uses:
    name, _, commit = action.partition('@')
    assert re.fullmatch('[0-9a-f]{40}', commit), action
    # People read the version, and tools that renew it do.
    assert re.search(rf'uses: {re.escape(action)} # v\d+\.\d+\.\d+$', TEXT,
                     re.MULTILINE), action
  assert len({action for action in uses}) == len(
      {action.partition('@')[0] for action in uses})  # one version of each


@pytest.mark.parametrize('job, rights', [
    ('test', None), ('build', None),
    ('attest', {'id-token': 'write', 'attestations': 'write'}),
    ('publish', {'id-token': 'write'})])
def test_rights(job, rights):
  assert yaml.safe_load(TEXT)['permissions'] == {'contents': 'read'}
  assert JOBS[job].get('permissions') == rights
  assert 'secrets.' not in TEXT and 'password:' not in TEXT
  for _, step in STEPS:  # nobody's text becomes a line of a shell
    assert '${{' not in step.get('run', '')


def test_nothing_untested_or_unsigned_is_published():
  assert [JOBS[name].get('needs') for name in (
      'test', 'build', 'attest', 'publish')] == [None, 'test', 'build',
                                                'attest']
  assert JOBS['publish']['environment'] == 'pypi'
  assert 'vars.PUBLISH' in JOBS['publish']['if']
  last = JOBS['publish']['steps'][-1]
  assert last['uses'].startswith('pypa/') and last['with']['attestations']


def test_its_commands_are_those_of_the_makefile():
  makefile = (fakes.ROOT / 'Makefile').read_text()
  targets = re.findall(r'make (\S+)', ' '.join(
      step.get('run', '') for _, step in STEPS))
  assert targets == ['test', 'dist']
  assert 'build/sbom.json' in makefile
  # The line that the tag is looked for in.
  project = (fakes.ROOT / 'pyproject.toml').read_text()
  version = tomllib.loads(project)['project']['version']
  assert f'version = "{version}"' in project.splitlines()
