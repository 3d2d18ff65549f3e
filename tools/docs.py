"""Build the documentation site into _docs: with Quarto if it is installed, else with smalldocs.

Both builders get the same folder, _proc: the notebooks as nbdev prepares them, then
* without the numbers in their names, so that addresses stay when a notebook moves (`01_models.ipynb` -> `models.html`),
* with links to this site's pages relative, so that they work wherever the site lies,
* with figures drawn from their data by one plotly.js that is a file of the site.
"""
import ast, json, os, re, shutil, subprocess, sys
from importlib import import_module
from pathlib import Path

from execnb.nbio import mk_cell
from execnb.shell import CaptureShell
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs

root = Path(__file__).resolve().parent.parent

class ShowDocs(exec_show_docs):
    "Runs the `show_doc` cells with the names of the exported module, and no other cell: the outputs in the notebook are those to show."
    def begin(self):
        self.k = CaptureShell()
        module = [c.directives_['default_exp'][0] for c in self.nb.cells if 'default_exp' in (getattr(c, 'directives_', None) or {})]
        self.k.run_cell('from nbdev.showdoc import show_doc')
        for m in module: self.k.user_ns.update({k: v for k, v in vars(import_module(f'plasticity_nb.{m}')).items() if k[:2] != '__'})

    def __call__(self, cell):
        if cell.cell_type != 'code' or not re.search(r'^show_doc\(', cell.source, re.M): return
        self.k.cell(cell)
        if self.k.exc: raise Exception(f'{self.nb.path_}: {cell.source}') from self.k.exc

    def end(self): pass

def constants(source, most=12):
    "The public names that exported `source` assigns, each with a heading, what its comment says, and at most `most` lines of its value."
    lines, parts = source.splitlines(), []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and n.id[0] != '_']
        if not names: continue
        code = lines[node.lineno-1:node.end_lineno]
        said = lines[node.end_lineno].removeprefix('#:').strip() if lines[node.end_lineno:] and lines[node.end_lineno].startswith('#:') else ''
        code = '\n'.join(code[:most] + [f'# and {len(code)-most} more lines']*(len(code) > most))
        parts.append('\n\n'.join(f'### {n} {{#{n}}}' for n in names) + f'\n\n{said}\n\n```python\n{code}\n```')
    return '\n\n'.join(parts)

class ShowConstants(Processor):
    "After an exported cell: its constants, which nbdev shows as little as it shows the cell."
    def begin(self):
        for i, cell in reversed(list(enumerate(self.nb.cells))):
            if cell.cell_type == 'code' and cell.directives_.keys() & {'export', 'exports'} and (text := constants(cell.source)):
                self.nb.cells.insert(i+1, mk_cell(text, 'markdown'))

class Filter(FilterDefaults):
    def base_procs(self):
        procs = [ShowDocs if p is exec_show_docs else p for p in super().base_procs()]
        return procs[:(after := procs.index(add_show_docs)+1)] + [ShowConstants] + procs[after:]

def page_name(name): return re.sub(r'^\d+[a-z0-9]*_', '', name, flags=re.I)

def unnumbered(text):
    "`text` with every `path/NN_name.ipynb` it names written without the number."
    return re.sub(r'(?<![\w/.])((?:\.\.?/|\w+/)*)(\d+[a-zA-Z0-9]*_\w+\.ipynb)', lambda m: m[1] + page_name(m[2]), text)

def own_links(text, site, up):
    "`text` with links to `site` relative to a page that lies `up` ('../' for each folder) below its root."
    text = re.sub(re.escape(site) + r'/?(?=[\w./-]*\.html)', up, text)
    return re.sub(re.escape(site) + r'/?(?=[)"\'\s#])', f'{up}index.html', text)

def plain_code(text):
    "`text` without links inside of its code, where they would be read as they are written."
    return re.sub(r'^```.*?^```', lambda m: re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', m[0]), text, flags=re.M | re.S)

def one_link(text):
    "`text` in which a name that its author made a link leads where the author wanted: nbdev has put its own link inside of it."
    return re.sub(r'\[\[(`[^`\n]+`)\]\([^()\s]*\)([^\[\]]*)\]\(', r'[\1\2](', text)

def draw_figures(nb, up):
    "Exchange the JSON of figures in the outputs of `nb` for page fragments that draw it."
    first = True
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            fig = out.get('data', {}).get('application/vnd.plotly.v1+json')
            if fig is None: continue
            from plasticity_nb.look import PageRenderer, template
            layout = fig['layout']
            if layout.get('width', 0) > 600: del layout['width']  # as wide as the page, or the phone
            if layout.get('template', {}).get('layout', {}).get('paper_bgcolor') == 'white': layout['template'] = template().to_plotly_json()
            html = PageRenderer().to_mimebundle({k: fig[k] for k in ('data', 'layout', 'frames') if k in fig})['text/html']
            if first: html, first = f'<script src="{up}plotly.min.js"></script>{html}', False
            out['data'] = {'text/html': html}

def prepare(proc, site):
    "Turn what nbdev left in folder `proc` into what the builders read."
    import plotly
    for nb_path in sorted(proc.rglob('*.ipynb')):
        up = '../' * len(nb_path.relative_to(proc).parent.parts)
        nb = json.loads(nb_path.read_text(encoding='utf-8'))
        draw_figures(nb, up)
        for cell in nb['cells']:
            texts = [(cell, 'source')] if cell['cell_type'] != 'code' else []
            texts += [(o['data'], k) for o in cell.get('outputs', []) for k in o.get('data', {}) if k in ('text/markdown', 'text/html')]
            for holder, key in texts:
                text = ''.join(holder[key])
                text = re.sub(r'^output-file: .*\n', '', text, flags=re.M) if cell['cell_type'] == 'raw' else text
                if 'plasticity-figure' not in text: holder[key] = own_links(unnumbered(one_link(plain_code(text))), site, up)
        new = nb_path.with_name(page_name(nb_path.name))
        if new != nb_path and new.exists(): sys.exit(f'{nb_path.name} and {new.name} would become the same page: rename one of them.')
        nb_path.rename(new).write_text(json.dumps(nb, ensure_ascii=False), encoding='utf-8')
    config = proc/'_quarto.yml'
    config.write_text(unnumbered(config.read_text(encoding='utf-8')), encoding='utf-8')
    shutil.copy(Path(plotly.__file__).parent/'package_data'/'plotly.min.js', proc)

def build(builder=None):
    "Process the notebooks, render them, and put the site into place once it is whole."
    os.chdir(root)
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import refresh_quarto_yml
    import nbdev.serve
    cfg = get_config()
    builder = builder or ('quarto' if shutil.which('quarto') else 'smalldocs')
    refresh_quarto_yml()
    _build_modidx()
    shutil.rmtree(root/'_proc', ignore_errors=True)
    nbdev.serve.FilterDefaults = Filter
    proc = nbdev.serve.proc_nbs(force=True)
    prepare(proc, cfg.doc_host + cfg.doc_baseurl)
    render = ['quarto', 'render', '--no-cache', '--no-execute'] if builder == 'quarto' else [sys.executable, '-m', 'smalldocs.cli', 'render']
    if subprocess.run(render, cwd=proc).returncode: sys.exit(f'{builder} could not build the site.')
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(proc/cfg.doc_path.name, cfg.doc_path)
    print(f'The site is in {cfg.doc_path.name}, built with {builder}: open {cfg.doc_path.name}/index.html')

if __name__ == '__main__':
    import docs  # under its own name, by which nbdev's worker processes find `Filter`
    docs.build(*sys.argv[1:])
