"""A real JupyterLab and a real voila with a real Chromium, for tests of widgets. Wait on text, never sleep."""
import contextlib, os, re, shutil, socket, subprocess, sys, time, urllib.request
from functools import cache
from pathlib import Path

import nbformat, pytest

root = Path(__file__).resolve().parent.parent
SECONDS = 120 # for a kernel that imports torch on a busy machine

@cache
def chromium():
    "The browser; installed where that can be done, else the test is left out and says so. Where tests are the point, it must be there."
    names = 'chromium', 'chromium-browser', 'google-chrome'
    found = lambda: next(filter(None, map(shutil.which, names)), None)
    if found(): return found()
    if shutil.which('apt-get') and hasattr(os, 'geteuid') and os.geteuid() == 0:
        for c in ('update', 'install -y chromium'): subprocess.run(['apt-get', '-qq', *c.split()], env=os.environ | dict(DEBIAN_FRONTEND='noninteractive'), stdin=subprocess.DEVNULL, capture_output=True)
    if found(): return found()
    (pytest.fail if os.environ.get('CI') else pytest.skip)('there is no Chromium on this machine and it could not be installed: apt-get install chromium')

@contextlib.contextmanager
def chrome(night=False, width=1280, height=1000):
    "A page of a browser that says what went wrong in it in `errors`."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-gpu'])
        page = b.new_page(viewport=dict(width=width, height=height), color_scheme='dark' if night else 'light')
        page.errors = []
        page.on('pageerror', lambda e: 'no comm channel defined' in str(e) or page.errors.append(str(e))) # every FigureWidget of plotly says this when it is closed
        page.set_default_timeout(SECONDS*1000)
        if os.environ.get('CONSOLE'): page.on('console', lambda m: m.type in ('error','warning') and print('console', m.type, m.text[:1500], m.location)); page.on('pageerror', lambda e: print('pageerror', e.message[:500], (e.stack or '')[:1500]))
        try: yield page
        except BaseException:
            if os.environ.get('SHOTS'): page.screenshot(path=f"{os.environ['SHOTS']}/failed.png", full_page=True)
            raise
        finally: b.close()

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@contextlib.contextmanager
def server(*command, folder, port, ready):
    "A server on this machine only, up until the block ends."
    env = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'} | {'JUPYTER_CONFIG_DIR': str(folder/'.config'), 'JUPYTER_DATA_DIR': str(folder/'.data'), 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    with open(folder/'server.log', 'w') as log:
        p = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            end = time.monotonic() + SECONDS
            while True:
                try: urllib.request.urlopen(f'http://127.0.0.1:{port}{ready}', timeout=5); break
                except OSError as e:
                    if getattr(e, 'code', 0): break # it answers
                    assert p.poll() is None and time.monotonic() < end, (folder/'server.log').read_text()[-3000:]
                    time.sleep(.2)
            yield f'http://127.0.0.1:{port}'
        finally:
            p.terminate()
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill(); p.wait()

def notebook(folder, *cells, name='widget.ipynb'):
    "A notebook with these cells."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))
    nbformat.write(nb, folder/name)
    return name

@contextlib.contextmanager
def jupyterlab(folder, *cells, night=False, width=1280, height=1000):
    "A notebook with these cells, open and run in JupyterLab; gives the page. Its cells are run again with `run_all`."
    name, port = notebook(folder, *cells), free_port()
    settings = folder/'.config'/'lab'/'user-settings'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (settings/'themes.jupyterlab-settings').write_text(f'{{"theme": "JupyterLab {"Dark" if night else "Light"}"}}')
    args = f'jupyterlab --no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token= --ServerApp.root_dir={folder}'
    with server(*args.split(), *['--allow-root'] * (hasattr(os, 'geteuid') and os.geteuid() == 0), folder=folder, port=port, ready='/api') as address, chrome(night, width, height) as page:
        page.goto(f'{address}/lab/tree/{name}?reset')
        page.locator('.jp-Notebook').wait_for()
        page.get_by_text('| Idle').wait_for() # what is run before a kernel is there is forgotten
        run_all(page)
        yield page

def run_all(page):
    "What the menu Run, Run All Cells does."
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.locator('.lm-Menu-itemLabel', has_text=re.compile('^Run All Cells')).first.click()

@contextlib.contextmanager
def voila(folder, *cells, night=False, width=1280, height=1000):
    "A notebook with these cells as voila shows it; gives the page."
    name, port = notebook(folder, *cells), free_port()
    args = f'voila {name} --no-browser --port={port} --Voila.ip=127.0.0.1 --theme={"dark" if night else "light"} --show_tracebacks=True'
    with server(*args.split(), folder=folder, port=port, ready='/voila/static/') as address, chrome(night, width, height) as page:
        page.goto(address)
        yield page
