"""The tracking browser in a real JupyterLab and in voila, on a run that goes on in another process."""
import os
from pathlib import Path

import pytest
from playwright.sync_api import expect
from browser import jupyterlab, voila
from plasticity_nb.runs import Run, append_line

def look(folder, cycle, name, shut=()):
    "A line as the journal writes it, of a model of 2 layers with 3 heads."
    n, at = 6, [(l, h) for l in range(2) for h in range(3)]
    vary = [.3 + .08*i + .05*cycle*((i % 3) - 1) for i in range(n)]
    append_line(folder/'entropy_journal.jsonl', dict(schema=1, time=1., experiment='demo', model='<b>made up</b>', cycle=cycle, name=name, sequences=1, tokens=8, digest='x', layer=[l for l, _ in at], head=[h for _, h in at],
        gate=[0. if x in shut else 1. for x in at], entropy=[2*v for v in vary], spread=[.1]*n, normalized=vary, first=[.2]*n, output=[1.]*n, fields={}, head_fields={}))

@pytest.fixture
def run(tmp_path):
    run = Run.create('demo', tmp_path/'runs')
    for c in range(3): look(run.path, c, 'learn', [(1, 2)]*(c > 0))
    return run

CELL = "from plasticity_nb.widgets.tracking_browser import TrackingBrowser\nb = TrackingBrowser({folder!r}, seconds=.3)\nb"

def use(page, run):
    "What a person does, whichever program shows the widget."
    panel = page.locator('.plasticity-panel')
    panel.get_by_text('3 looks at 6 heads in cycles 0 to 2').wait_for()
    panel.locator('.gtitle', has_text='Entropy of every head').wait_for()
    panel.get_by_text('<b>made up</b>').wait_for() # names are text
    panel.get_by_role('button', name='Change').click()
    panel.locator('.gtitle', has_text='How much the entropy of every head has changed').wait_for()
    panel.get_by_role('button', name='Gates').focus()
    page.keyboard.press('Enter')
    panel.locator('.gtitle', has_text='Which heads are open').wait_for()
    panel.get_by_role('button', name='Function', exact=True).click()
    panel.get_by_text('Nothing was compared in these cycles').wait_for()
    panel.get_by_role('button', name='EEG').click()
    look(run.path, 3, 'learn', [(1, 2), (0, 0)]) # by another process, while one looks
    panel.get_by_text('4 looks at 6 heads in cycles 0 to 3').wait_for()
    panel.get_by_text('The run is not finished').wait_for()
    run.event('done')
    look(run.path, 4, 'learn')
    panel.get_by_text('The run is finished').wait_for()
    expect(panel.get_by_label('follow the run')).not_to_be_checked()

def test_a_run_is_browsed_in_jupyterlab(tmp_path, run):
    with jupyterlab(tmp_path, CELL.format(folder=str(run.path)), night=True) as page:
        use(page, run)
        assert not page.errors, page.errors
        if shots := os.environ.get('SHOTS'): page.locator('.plasticity-panel').screenshot(path=f'{shots}/tracking_browser.png')

def test_a_run_is_browsed_in_voila(tmp_path, run):
    with voila(tmp_path, CELL.format(folder=str(run.path)), width=800) as page: use(page, run)
