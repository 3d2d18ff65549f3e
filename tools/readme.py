"""Write README.md from nbs/index.ipynb: its Markdown, the code of its visible cells, and their outputs as Markdown or text."""
import json, re
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def rooted(text, folder):
    "Relative links of a page in `folder` as links from the top of the repository."
    return re.sub(r'(\]\(|(?:src|href)=")(?![a-z]+:|[#/])', rf'\1{folder}/', text)

def readme(notebook):
    "The README that the notebook at path `notebook` makes."
    import nbformat
    from nbconvert import MarkdownExporter
    from nbdev.process import extract_directives
    nb = nbformat.read(notebook, as_version=4)
    cells = []
    for cell in nb.cells:
        if cell.cell_type == 'code':
            options = extract_directives(cell)
            if options.keys() & {'hide', 'default_exp', 'export', 'exporti'} or options.get('include:') == ['false']: continue
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
            if options.get('echo:') == ['false']: cell.metadata['transient'] = {'remove_source': True}
            for out in cell.outputs:
                if 'data' in out and 'text/markdown' in out.data: out.data = {'text/markdown': out.data['text/markdown']}
                elif 'data' in out and 'text/plain' in out.data: out.data = {'text/plain': out.data['text/plain']}
        cells.append(cell)
    nb.cells, nb.metadata['language_info'] = cells, {'name': 'python'}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get('outputs'): raise SystemExit('index.ipynb: put pictures into nbs/images and link them: GitHub and PyPI show no outputs.')
    text = re.sub(r'\n{3,}', '\n\n', rooted(text, notebook.parent.name)).strip()
    return f'<!-- Made from {notebook.relative_to(root).as_posix()} by `make readme`: change that, not this. -->\n\n{text}\n'

if __name__ == '__main__':
    text = readme(root/'nbs'/'index.ipynb')
    (root/'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.splitlines())} lines')
