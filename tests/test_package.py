"""What is shipped: the wheel, the weight of an import, and the agreement of settings, notebooks and package."""
import ast, configparser, json, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
package = root/'plasticity_nb'
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini')
cfg = cfg['DEFAULT']
notebooks = [f for f in sorted((root/'nbs').rglob('*.ipynb')) if not any(p[0] in '_.' for p in f.relative_to(root).parts)]

def python(*args, **kwargs): return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=600, **kwargs)

def test_importing_the_package_is_light():
    heavy = ['torch', 'transformers', 'pandas', 'numpy', 'plotly', 'datasets', 'accelerate', 'bitsandbytes', 'IPython']
    res = python('-c', f'import sys, plasticity_nb; print([m for m in {heavy} if m in sys.modules], plasticity_nb.__version__)')
    assert res.stdout.strip() == f'[] {cfg["version"]}', res

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('wheel')
    for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE'): shutil.copy(root/f, tmp)
    shutil.copytree(package, tmp/package.name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    res = python('-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', str(tmp/'dist'), str(tmp))
    assert res.returncode == 0, res.stdout + res.stderr
    return next((tmp/'dist').glob('*.whl'))

def test_the_wheel_holds_the_whole_package(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('plasticity_nb/')}
    here = {f.relative_to(root).as_posix() for f in package.rglob('*') if f.is_file() and '__pycache__' not in f.parts and f.name[0] != '.'}
    assert inside == here
    tiny = {f'plasticity_nb/data/tiny/{n}' for n in ('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'training.json')}
    assert tiny <= inside, tiny - inside
    assert wheel.stat().st_size < 18e6

def test_the_wheel_says_what_it_is(wheel):
    z = zipfile.ZipFile(wheel)
    info = next(n for n in z.namelist() if n.endswith('.dist-info/METADATA'))
    meta, entries = z.read(info).decode(), z.read(info.replace('METADATA', 'entry_points.txt')).decode()
    assert f'Requires-Python: >={cfg["min_python"]}' in meta and 'License-Expression: Apache-2.0' in meta
    assert not re.search(r'\]\((?![a-z]+:|#)', meta), 'a relative link, which PyPI cannot follow'
    for script in cfg['console_scripts'].split(): assert script.replace('=', ' = ') in entries
    assert any(n.endswith('licenses/LICENSE') for n in z.namelist())

def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import plasticity_nb; print(plasticity_nb.__file__)\n'
    code += 'from plasticity_nb.models import load_lm; print(load_lm("tiny").name)'
    res = python('-c', code, cwd=tmp_path)
    assert res.returncode == 0 and res.stdout.split() == [str(tmp_path/'plasticity_nb'/'__init__.py'), 'tiny'], res

def imports(f):
    "The top-level names that a module imports, wherever in it."
    for node in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]

def test_every_import_is_a_requirement():
    required = {re.split(r'[<>=!~\[]', r)[0].replace('-', '_') for r in (cfg['requirements'] + ' ' + cfg['ray_requirements']).split()}
    used = {m for f in package.rglob('*.py') for m in imports(f)} - set(sys.stdlib_module_names) - {'plasticity_nb'}
    through = {'numpy': 'torch', 'IPython': 'ipywidgets', 'huggingface_hub': 'transformers', 'tokenizers': 'transformers', 'PIL': 'matplotlib'}
    assert not {m for m in used if m not in required and through.get(m) not in required}

def test_every_module_comes_from_a_notebook():
    exported = set()
    for f in notebooks:
        cells = [''.join(c['source']) for c in json.loads(f.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        exported |= {m[1].replace('.', '/') for c in cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c, re.M))}
    modules = {f.relative_to(package).with_suffix('').as_posix() for f in package.rglob('*.py') if f.name[0] != '_'}
    assert modules == exported

@pytest.mark.parametrize('f', notebooks, ids=lambda f: f.relative_to(root/'nbs').as_posix())
def test_notebook_outputs_are_light(f):
    "Figures hold their data and no plotly.js, no widget state is saved, and no output names a folder of somebody's machine."
    text = f.read_text(encoding='utf-8')
    nb = json.loads(text)
    assert 'widgets' not in nb['metadata'] and 'application/vnd.jupyter.widget-view' not in text
    assert 'plotly.js v' not in text and f.stat().st_size < 1_500_000
    outputs = json.dumps([c.get('outputs') for c in nb['cells']])
    machine = re.findall(r'.{,60}(?:/(?:root|home|Users|tmp)/|site.packages/).{,40}', outputs)
    assert not machine, machine
    assert '"output_type": "error"' not in outputs

def test_the_readme_is_what_index_makes():
    res = python('-c', 'import sys; sys.path.insert(0, "tools"); import readme; sys.stdout.write(readme.readme(readme.root/"nbs"/"index.ipynb"))', cwd=root)
    assert res.stdout == (root/'README.md').read_text(encoding='utf-8'), 'run make readme'

def test_links_of_the_text_files_lead_somewhere():
    for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        for link in re.findall(r'\]\((?![a-z]+:|#)([^)#]+)', (root/name).read_text(encoding='utf-8')): assert (root/link).exists(), f'{name}: {link}'

def test_cleaning_keeps_a_figures_data_and_drops_widgets():
    sys.path.insert(0, str(root/'tools'))
    from clean import FIGURE, WIDGET, clean_outputs
    out = lambda **data: dict(output_type='display_data', metadata={}, data=data)
    fig, text = out(**{FIGURE: {'data': []}, 'text/html': 'plotly.js v4'}), out(**{'text/plain': 'kept'})
    nb = dict(metadata=dict(widgets={}), cells=[dict(cell_type='code', outputs=[fig, out(**{WIDGET: {}, 'text/plain': '0%'}), text]), dict(cell_type='markdown')])
    assert clean_outputs(nb) and 'widgets' not in nb['metadata']
    assert nb['cells'][0]['outputs'] == [out(**{FIGURE: {'data': []}}), text]
    assert not clean_outputs(nb), 'clean already'
