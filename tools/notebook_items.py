"""pytest plugin: every notebook under nbs/ is one test, run by nbdev's own `test_nb`, so all nbdev directives hold.

Each notebook runs in a fresh process, because module state would leak from one notebook into the next.
The processes are forked from a server that has imported the slow libraries already (`notebook_preload` in pytest.ini):
a start costs milliseconds.

Tests run in several processes at once (pytest-xdist), a file in one of them, and share the cores: small models gain
nothing from a second thread, but everything from a second process.
"""
import faulthandler, multiprocessing, os, sys, tempfile, textwrap, traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

WORKERS = min(4, os.cpu_count() or 1)
os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//WORKERS)))  # before torch is imported

def pytest_xdist_auto_num_workers(config): return WORKERS

def pytest_addoption(parser):
    group = parser.getgroup('notebooks')
    group.addoption('--quick', action='store_true', help="leave out notebook cells marked '#| slow'")
    group.addoption('--hub', action='store_true', help="run notebook cells marked '#| hub' too (they need a model hub)")
    parser.addini('notebook_seconds', 'a notebook that runs longer than this is stopped with a traceback', default='1800')
    parser.addini('notebook_preload', 'modules that the processes of notebooks find imported', type='args', default=[])

def pytest_collect_file(file_path, parent):
    "Collect what `nbdev_test` would: notebooks in `nbs_path`, without `_` and `.` names and folders that hold a `.notest` file."
    if file_path.suffix != '.ipynb': return
    from nbdev.config import get_config
    nbs = Path(get_config(path=parent.config.rootpath).nbs_path).resolve()
    if not file_path.resolve().is_relative_to(nbs): return
    names = file_path.resolve().relative_to(nbs).parts
    if any(n[0] in '_.' for n in names) or (file_path.parent/'.notest').exists(): return
    return NotebookFile.from_parent(parent, path=file_path)

class NotebookFile(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name='cells')

class NotebookFailed(Exception): "Holds what the notebook's process wrote: the failing cell and its traceback."

class Failure:
    "What pytest shows: the whole text, and its first line in the summary."
    def __init__(self, text, path): self.text, self.reprcrash = text, SimpleNamespace(message=text.splitlines()[0], path=str(path), lineno=0)
    def __str__(self): return self.text
    def toterminal(self, tw): tw.line(self.text)

class NotebookItem(pytest.Item):
    def runtest(self):
        directives = Counter(d for cell in cell_directives(self.path) for d in cell)
        if 'skip_exec' in directives: pytest.skip('skip_exec in its front matter')
        force = {f for f, on in (('slow', not self.config.getoption('quick')), ('hub', self.config.getoption('hub')),
                                 ('cuda', 'cuda' in directives and has_cuda()),
                                 ('py311', sys.version_info[:2] == (3, 11))) if on}
        left_out = {f: directives[f] for f in skip_flags() if f in directives and f not in force}
        if left_out: self.user_properties.append(('left out', ', '.join(f'{n} {f}' for f, n in left_out.items())))
        passed, text = run_apart(self.path, force, float(self.config.getini('notebook_seconds')),
                                 self.config.getini('notebook_preload'))
        if not passed: raise NotebookFailed(text)
        if text.strip(): self.add_report_section('call', 'output', text)

    def repr_failure(self, excinfo):
        return Failure(str(excinfo.value), self.path) if isinstance(excinfo.value, NotebookFailed) else super().repr_failure(excinfo)

    def reportinfo(self): return self.path, None, str(self.path.relative_to(self.config.rootpath))

def pytest_terminal_summary(terminalreporter):
    left = [(r.nodeid, v) for rs in terminalreporter.stats.values() for r in rs if getattr(r, 'when', '') == 'call'
            for k, v in r.user_properties if k == 'left out']
    if left: terminalreporter.write_line('cells left out by their directives: ' + '; '.join(f'{n.split("::")[0]} {v}' for n, v in left))

def skip_flags():
    from nbdev.config import get_config
    return get_config().tst_flags.split()

def cell_directives(path):
    "The directives of each cell; `skip_exec` stands for the front matter's."
    from fastcore.basics import str2bool
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(getattr(nb, 'frontmatter_', {}).get('skip_exec', False)): yield ['skip_exec']
    for cell in nb.cells: yield list(getattr(cell, 'directives_', None) or {})

def has_cuda():
    import torch
    return torch.cuda.is_available()

def run_apart(path, force, seconds, preload):
    "Run notebook `path` in a process of its own; whether it passed, and what it wrote."
    method = 'forkserver' if sys.platform == 'linux' else 'spawn'
    mp = multiprocessing.get_context(method)
    if method == 'forkserver': mp.set_forkserver_preload(['nbdev.test', *preload])
    with tempfile.TemporaryDirectory() as tmp:
        out, at = Path(tmp)/'out', Path(tmp)/'at'
        p = mp.Process(target=run_notebook, args=(path, sorted(force), out, at, seconds))
        p.start()
        try: p.join(seconds + 30)
        finally:
            if p.is_alive(): p.kill(); p.join()
        text, at = (f.read_text(encoding='utf-8', errors='replace') if f.exists() else '' for f in (out, at))
    if p.exitcode not in (0, FAILED):
        how = f'was stopped after {seconds:.0f} s' if 'Timeout (' in text else f'ended with exit code {p.exitcode}'
        text = f'its process {how} in {at}\n{text}'
    return p.exitcode == 0, text

FAILED = 3

def run_notebook(path, force, out, at, seconds):
    "In the child: everything written goes to file `out`; the exit code says how it went."
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os.dup2(fd, 1); os.dup2(fd, 2)
    sys.stdout, sys.stderr = (open(n, 'w', encoding='utf-8', errors='replace', buffering=1, closefd=False) for n in (1, 2))
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    import nbdev.test
    from nbdev.config import get_config
    nbdev.test.CaptureShell = showing_the_cell(nbdev.test.CaptureShell, at)
    os.chdir(path.parent)
    passed, _ = nbdev.test.test_nb(path, skip_flags=skip_flags(), force_flags=force, basepath=get_config().config_path)
    for stream in (sys.stdout, sys.stderr): stream.flush()
    if not passed: sys.exit(FAILED)

def showing_the_cell(Shell, at):
    "`Shell` that notes in file `at` which cell runs, and shows a failing cell's source and output above its traceback."
    class ShowingShell(Shell):
        def cell(self, cell, *args, **kwargs):
            self.current = cell
            at.write_text(f'cell {cell.idx_ + 1}:\n\n{indented(cell.source)}\n', encoding='utf-8')
            super().cell(cell, *args, **kwargs)

        def _showtraceback(self, etype, evalue, stb): pass  # prettytb shows it once, in plain text

        def prettytb(self, fname=None):
            "Leaves out the runner's own frames: the traceback begins in the cell."
            tb, wrote = self.exc.__traceback__, [''.join(o.text) for o in self.current.get('outputs', []) if o.output_type == 'stream']
            while tb and '<ipython-input' not in tb.tb_frame.f_code.co_filename: tb = tb.tb_next
            error = traceback.format_exception_only(self.exc)
            return (f'cell {self._cell_idx}: {error[-1]}\n{indented(self.current.source)}\n\n' + (f'It wrote:\n{"".join(wrote)}\n' if wrote else '')
                    + ''.join(traceback.format_exception(type(self.exc), self.exc, tb) if tb else error))
    return ShowingShell

def indented(source): return textwrap.indent(source, '    ')
