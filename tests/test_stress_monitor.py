"""The stress monitor in a real JupyterLab and in voila: run, pause, step, undo, compare, errors, and nothing left behind. PICTURES=folder keeps pictures of it."""
import os, re
from pathlib import Path
import pytest
from browser import jupyterlab, voila

CELL = '''import warnings; warnings.filterwarnings('ignore')
from plasticity_nb.models import load_lm
from plasticity_nb.rcg.patch import fingerprint
from plasticity_nb.widgets.stress_monitor import StressMonitor
lm = load_lm('tiny'); before = fingerprint(lm)
m = StressMonitor(lm, prompt='A class is', tokens=48)
m'''
LEFT = "m.close(); print('left behind:', sum(len(x._forward_hooks)+len(x._forward_pre_hooks) for x in lm.model.modules()), fingerprint(lm)==before)"

def picture(page, name):
    "Keep a picture of the panel, if pictures are asked for."
    if folder := os.environ.get('PICTURES'): page.locator('.plasticity-panel').screenshot(path=Path(folder)/f'{name}.png')

def drawn(page, color):
    "Wait until the heads are drawn, and a line of the figure has this colour."
    page.wait_for_function("c => document.querySelectorAll('.plasticity-panel .hm image').length >= 2 && [...document.querySelectorAll('.plasticity-panel .scatterlayer path.js-line')].some(p => p.style.stroke === c)", arg=color)

def number(page, text): # in a sentence of the panel
    return int(re.search(text, page.locator('.plasticity-said').inner_text())[1])

def test_the_monitor_in_voila(tmp_path):
    with voila(tmp_path, CELL) as page:
        panel = page.locator('.plasticity-panel')
        panel.get_by_role('button', name='Run', exact=True).click()
        panel.get_by_text('Written: 48 tokens').wait_for()
        assert panel.locator('.plasticity-text span').count() > 40
        drawn(page, 'rgb(0, 114, 178)')
        panel.get_by_role('button', name='Undo').first.click()
        panel.get_by_text('Undone. It holds from the next token on').wait_for()
        picture(page, 'stress_monitor_voila')
