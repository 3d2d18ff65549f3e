"""A panel in a real JupyterLab and in voila: it works in a thread, shows what goes wrong, follows the theme, and says when its kernel has gone."""
import pytest
from browser import jupyterlab, run_all, voila

CELL = '''from plasticity_nb.errors import PlasticityError
from plasticity_nb.widgets.panel import *
from plasticity_nb.look import STATES, template
from ipywidgets import Button, HTML
import plotly.graph_objects as go
p = Panel('counter')
n, count, fail = HTML('count 0'), Button(description='Count'), Button(description='Fail')
f = p.figure(go.Figure(go.Scatter(x=[0], y=[0], line_color=STATES['alive'].color)).update_layout(template=template(), height=200, title='live'))
def counting():
    i = 0
    while not p.stopping.wait(.05):
        i += 1; n.value = f'count {i}'
        with drawing(f): f.data[0].update(x=[0, i], y=[0, i])
def broken(): raise PlasticityError('a <b>wrong</b> level: give a share')
count.on_click(p.guarded(lambda: p.work(counting))); fail.on_click(p.guarded(broken))
p.show(count, fail, n, f)'''

def shown(page, color):
    "Wait until the line of the figure has this colour."
    page.wait_for_function("c => [...document.querySelectorAll('.plasticity-panel .scatterlayer path.js-line')].some(p => p.style.stroke === c)", arg=color)

@pytest.mark.parametrize('night', [False, True])
def test_a_panel_lives_in_jupyterlab(tmp_path, night):
    with jupyterlab(tmp_path, CELL, "print('the kernel answers,', p.busy)", "if 'once' in globals(): p.close()\nonce = True; print('closed:', p.closed)", night=night) as page:
        panel = page.locator('.plasticity-panel')
        page.get_by_text('closed: False').wait_for() # run all went through, to the end
        run = lambda i: (page.locator('.jp-Notebook .jp-CodeCell').nth(i).locator('.cm-content').click(), page.keyboard.press('Control+Enter'))
        shown(page, 'rgb(31, 208, 143)' if night else 'rgb(0, 158, 115)')
        panel.get_by_role('button', name='Fail').click()
        panel.get_by_role('alert').get_by_text('a <b>wrong</b> level: give a share').wait_for()
        panel.get_by_role('button', name='Count').focus()
        page.keyboard.press('Enter')
        panel.get_by_text('count 3').wait_for()
        run(1)
        page.get_by_text('the kernel answers, True').wait_for()
        run(2)
        panel.wait_for(state='detached')
        assert not page.errors, page.errors

def test_a_panel_lives_in_voila(tmp_path):
    with voila(tmp_path, CELL) as page:
        panel = page.locator('.plasticity-panel')
        panel.get_by_role('button', name='Count').click()
        panel.get_by_text('count 3').wait_for()
        shown(page, 'rgb(0, 158, 115)')
        panel.get_by_role('button', name='Fail').click()
        panel.get_by_role('alert').wait_for()

def test_a_panel_says_that_its_kernel_has_gone(tmp_path):
    with jupyterlab(tmp_path, CELL) as page:
        panel = page.locator('.plasticity-panel')
        panel.get_by_text('count 0').wait_for()
        page.get_by_role('menuitem', name='Kernel', exact=True).click()
        page.get_by_text('Restart Kernel…', exact=True).click()
        page.get_by_role('dialog').get_by_role('button', name='Confirm Kernel Restart').click()
        page.wait_for_function("getComputedStyle(document.querySelector('.plasticity-panel'), '::before').content.includes('run the cell again')")
