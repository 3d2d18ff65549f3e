"""Clean the notebooks: nbdev's cleaning, and of the outputs what does not belong in git.

A figure keeps its data and nothing that is made from it (plotly.js alone is 4 MB); widget state goes, with the outputs that show it.
"""
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from nbdev.clean import clean_nb, nbdev_clean

root = Path(__file__).resolve().parent.parent
FIGURE, WIDGET = 'application/vnd.plotly.v1+json', 'application/vnd.jupyter.widget-view+json'

def clean_outputs(nb):
    "Drop widgets and everything of a figure but its data from notebook `nb` (a dict); whether there was something to drop."
    changed = nb['metadata'].pop('widgets', None) is not None
    for cell in nb['cells']:
        kept = [o for o in cell.get('outputs', []) if WIDGET not in o.get('data', {})]
        changed |= len(kept) != len(cell.get('outputs', []))
        if 'outputs' in cell: cell['outputs'] = kept
        for data in (o['data'] for o in kept if FIGURE in o.get('data', {})):
            changed |= len(data) > 1
            for k in set(data) - {FIGURE}: del data[k]
    return changed

def clean_model(model, **kwargs):
    "Jupyter's pre-save hook."
    if model['type'] != 'notebook' or model['content']['nbformat'] != 4: return
    clean_outputs(model['content'])
    clean_nb(model['content'])

def clean(folder=root/'nbs'):
    folder = Path(folder)
    for f in sorted(folder.rglob('*.ipynb')) if folder.is_dir() else [folder]:
        if folder.is_dir() and any(p[0] in '_.' for p in f.relative_to(folder).parts): continue
        nb = read_nb(f)
        if clean_outputs(nb): write_nb(nb, f)
    nbdev_clean(str(folder))

if __name__ == '__main__': clean(*sys.argv[1:])
