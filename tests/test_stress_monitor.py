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
LEFT = "if 'once' in globals(): m.close()\nonce = True; print('left behind:', sum(len(x._forward_hooks)+len(x._forward_pre_hooks) for x in lm.model.modules()), fingerprint(lm)==before)"

def picture(page, name):
    "Keep a picture of the panel, if pictures are asked for."
    if folder := os.environ.get('PICTURES'): page.locator('.plasticity-panel').screenshot(path=Path(folder)/f'{name}.png')

def drawn(page, color):
    "Wait until the heads are drawn, and a line of the figure has this colour."
    page.wait_for_function("c => document.querySelectorAll('.plasticity-panel .hm image').length >= 2 && [...document.querySelectorAll('.plasticity-panel .scatterlayer path.js-line')].some(p => p.style.stroke === c)", arg=color)

def number(page, text): # in a sentence of the panel
    return int(re.search(text, page.locator('.plasticity-said').inner_text())[1])

@pytest.mark.parametrize('night', [False, True])
def test_the_monitor_in_jupyterlab(tmp_path, night):
    with jupyterlab(tmp_path, CELL, "print('the kernel answers:', m.busy)", LEFT, night=night, height=1400) as page:
        panel = page.locator('.plasticity-panel')
        page.get_by_text('left behind: ').wait_for() # run all went through, to the end
        run = lambda i: (page.locator('.jp-Notebook .jp-CodeCell').nth(i).locator('.cm-content').click(), page.keyboard.press('Control+Enter'))
        button = lambda name: panel.get_by_role('button', name=name, exact=True)
        panel.get_by_text('Ready: Run writes to the end').wait_for()
        prompt = panel.locator('textarea')
        prompt.fill(' ')
        button('Run').click()                               # what is wrong is said
        panel.get_by_role('alert').get_by_text('a prompt is empty').wait_for()
        prompt.fill('A class is <b>')
        prompt.press('Tab')
        panel.get_by_role('slider').first.focus()                 # slow enough to be stopped, by keyboard
        page.keyboard.press('Home')
        button('Run').focus(); page.keyboard.press('Enter')
        panel.get_by_text('Writing ...').wait_for()
        panel.locator('.plasticity-text span').nth(2).wait_for()
        run(1)
        page.get_by_text('the kernel answers: True').wait_for()
        button('Pause').click()
        panel.get_by_text(re.compile(r'Paused at token \d+ of 48')).wait_for()
        n = number(page, r'token (\d+) of')
        button('Step').click()
        panel.get_by_text(f'Paused at token {n+1} of 48').wait_for()
        assert panel.locator('.plasticity-text b').count() == 0 and 'A class is <b>' in panel.locator('.plasticity-text').first.inner_text()
        panel.get_by_role('slider').first.focus()
        page.keyboard.press('End')
        button('Run').click()
        panel.get_by_text('Written: 48 tokens. The text is held open').wait_for()
        drawn(page, 'rgb(76, 143, 240)' if night else 'rgb(0, 114, 178)')
        panel.locator('.plasticity-text').first.focus()     # the numbers of a token, by keyboard
        page.keyboard.press('ArrowLeft')
        assert 'repetition' in panel.locator('.plasticity-line').first.inner_text()
        first = panel.locator('.plasticity-event').first
        first.get_by_text('in force').wait_for()
        first.get_by_role('button', name='Undo').click()
        first.get_by_text('undone').wait_for()
        assert first.get_by_role('button', name='Undo').is_disabled()
        picture(page, 'stress_monitor_dark' if night else 'stress_monitor')
        button('Reset').click()
        panel.get_by_text('Reset: the model is what it was.').wait_for()
        run(2)
        page.get_by_text('left behind: 0 True').wait_for()
        panel.wait_for(state='detached')
        assert not page.errors, page.errors

def test_two_texts_side_by_side_in_a_narrow_jupyterlab(tmp_path):
    with jupyterlab(tmp_path, CELL, width=800, height=1800) as page:
        panel = page.locator('.plasticity-panel')
        panel.get_by_role('button', name='Compare').click()
        panel.get_by_text('held open').wait_for()
        for how in ('RCG on','RCG off'): panel.locator('.plasticity-head', has_text=how).wait_for()
        panel.get_by_text('rep-4').nth(1).wait_for()
        drawn(page, 'rgb(0, 114, 178)')
        cut = page.evaluate("[...document.querySelectorAll('.plasticity-panel *')].filter(e => !e.closest('.plasticity-wide > *') && e.getBoundingClientRect().right > innerWidth+1).map(e => e.className)")
        assert not cut, f'something is cut off that cannot be scrolled to: {cut}'
        picture(page, 'stress_monitor_narrow')
        assert not page.errors, page.errors

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
