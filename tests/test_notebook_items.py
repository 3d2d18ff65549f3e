"""The plugin that runs notebooks as tests (tools/notebook_items.py), tried on notebooks made for it."""
import os, re, subprocess, sys
from pathlib import Path

import nbformat
import pytest

root = Path(__file__).resolve().parent.parent

@pytest.fixture
def run(tmp_path):
    "Writes notebooks ({name: [cell, ...]}) into a small nbdev project, runs pytest there, and returns what it printed."
    def _run(notebooks, *args):
        (tmp_path/'conftest.py').write_text("pytest_plugins = ['notebook_items']\n")
        (tmp_path/'settings.ini').write_text('[DEFAULT]\nrepo = p\nlib_name = p\nlib_path = p\nversion = 1\nuser = u\nauthor = a\nauthor_email = a\n'
                                             'description = d\ntst_flags = notest slow cuda hub\n')
        for name, cells in notebooks.items():
            as_cell = lambda c: nbformat.v4.new_raw_cell(c) if c.startswith('---') else nbformat.v4.new_code_cell(c)
            f = tmp_path/'nbs'/f'{name}.ipynb'
            f.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(nbformat.v4.new_notebook(cells=[as_cell(c) for c in cells]), f)
        env = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST') and k != 'IN_TEST'}
        res = subprocess.run([sys.executable, '-m', 'pytest', '-ra', '-o', f'pythonpath={root/"tools"}', *args, 'nbs'], cwd=tmp_path, env=env,
                             capture_output=True, text=True, timeout=300)
        _run.code = res.returncode
        return res.stdout + res.stderr
    return _run

def closing(text): return text.strip().splitlines()[-1]

def test_a_failing_cell_is_shown_with_its_traceback(run):
    out = run({'good': ['a = 1', 'assert a == 1'], 'bad': ['x = {}', 'print("so far")\ndef f(d):\n    return d["k"]\nf(x)', 'never = 1']})
    assert run.code == 1 and '1 failed, 1 passed' in closing(out)
    assert "cell 2: KeyError: 'k'" in out and '    f(x)\n' in out and 'so far' in out, out
    assert 'return d["k"]' in out and 'execnb' not in out

def test_directives_are_honoured(run):
    cells = ['open("ran", "a").write("plain ")', '#| slow\nopen("ran", "a").write("slow ")', '#| hub\nopen("ran", "a").write("hub ")',
             '#| notest\n1/0', '#| eval: false\n1/0', 'import nbdev; nbdev.nbdev_export()']
    def ran(*args):
        out = run({'some': cells}, *args)
        assert '1 passed' in closing(out), out
        f = next(Path(p) for p in [re.search(r'rootdir: (.*)', out)[1]])/'nbs'/'ran'
        text = f.read_text(); f.unlink()
        return text.split(), out
    assert ran()[0] == ['plain', 'slow']
    quick, out = ran('--quick')
    assert quick == ['plain'] and 'cells left out by their directives: nbs/some.ipynb 1 notest, 1 slow, 1 hub' in out
    assert ran('--hub')[0] == ['plain', 'slow', 'hub']

def test_cuda_cells_run_only_with_a_gpu(run):
    import torch
    out = run({'gpu': ['#| cuda\n1/0']})
    assert ('1 failed' if torch.cuda.is_available() else '1 passed') in closing(out), out

def test_only_notebooks_that_nbdev_would_test(run):
    out = run({'a': ['1'], '_draft': ['1/0'], 'sub/b': ['1'], '_sub/c': ['1/0'], 'front': ['---\nskip_exec: true\n---', '1/0']})
    assert '2 passed, 1 skipped' in closing(out), out

def test_notebooks_do_not_share_state(run):
    out = run({'a': ['import json; json.LEFT = 1'], 'b': ['import json; assert not hasattr(json, "LEFT")'], 'c': ['import os; os.environ["LEFT"] = "1"'],
               'd': ['import os; assert "LEFT" not in os.environ']})
    assert '4 passed' in closing(out), out

def test_a_process_that_dies_or_hangs_names_its_cell(run):
    out = run({'dies': ['a = 1', 'import os; os._exit(7)'], 'hangs': ['import time\ntime.sleep(60)']}, '-o', 'notebook_seconds=3')
    assert '2 failed' in closing(out)
    assert 'ended with exit code 7 in cell 2' in out and 'os._exit(7)' in out, out
    assert 'was stopped after 3 s in cell 1' in out, out
