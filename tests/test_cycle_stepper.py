"""The cycle stepper in a real JupyterLab and in voila: a cycle phase by phase, a head by hand, the way back, an error that is shown, and all at once."""
import re
from browser import jupyterlab, voila

CELL = '''import tempfile, warnings; warnings.filterwarnings('ignore')
from plasticity_nb.cycle.system import AdaptivePlasticitySystem
from plasticity_nb.widgets.cycle_stepper import CycleStepper
system = AdaptivePlasticitySystem('tiny', 'python-docs', output_dir=tempfile.mkdtemp(), device='cpu', block_len=64, eval_blocks=2, calibration_blocks=2, steps=3, samples=1, verbose=False)
stepper = CycleStepper(system)
stepper'''

LATER = ( # cells that do something the second time, since opening a notebook runs all
    "again = globals().get('again', 0)+1\nif again>1: print('seen by the kernel:', stepper.points[-1].title, len(stepper.points), stepper.run.events()[-1]['kind'])",
    "if again>1: stepper.close(); print('closed,', stepper.busy)")

def says(page, text, **kwargs):
    "Wait until the panel says this."
    page.locator('.plasticity-panel .plasticity-said').get_by_text(text, **kwargs).first.wait_for()

def press(page, name): page.locator('.plasticity-panel').get_by_role('button', name=name, exact=True).click()

def click_head(page, layer, head, layers=6, heads=8):
    "Click a cell of the head map."
    box = page.locator('.plasticity-fig').first.locator('.nsewdrag').first.bounding_box()
    page.mouse.click(box['x'] + box['width']*(layer+.5)/layers, box['y'] + box['height']*(head+.5)/heads)

def test_a_cycle_is_stepped_through_in_jupyterlab(tmp_path):
    with jupyterlab(tmp_path, CELL, *LATER) as page:
        panel, run = page.locator('.plasticity-panel'), lambda i: (page.locator('.jp-Notebook .jp-CodeCell').nth(i).locator('.cm-content').click(), page.keyboard.press('Control+Enter'))
        says(page, 'has a perplexity of')
        assert panel.get_by_role('button', name='Grow', exact=True).is_disabled()
        panel.get_by_text('Grow follows Measure').wait_for()
        panel.get_by_label('level').fill('1.5'); page.keyboard.press('Enter')
        press(page, 'Prune')
        panel.get_by_role('alert').get_by_text('pruning level 1.5 is outside 0...1').wait_for()
        press(page, 'Prune this head')
        panel.get_by_role('alert').get_by_text('no head is selected').wait_for()
        panel.get_by_label('level').fill('0.25'); page.keyboard.press('Enter')
        panel.get_by_role('button', name='Prune', exact=True).focus(); page.keyboard.press('Enter') # no mouse is needed
        says(page, '12 heads closed by taylor')
        press(page, 'Measure'); says(page, 'with 36 heads open')
        press(page, 'Grow'); says(page, 'closed heads come back by gradient')
        press(page, 'Learn'); says(page, 'the dense model, on the same tokens')
        click_head(page, 2, 5)
        panel.get_by_text('Importance by taylor').wait_for()
        press(page, 'Prune this head' if panel.get_by_text('It is open').count() else 'Revive this head')
        says(page, re.compile(r'Head \(2, 5\) .*d by hand: .* a head drawn by lot in the random control'))
        panel.locator('option', has_text='cycle 1: measure').wait_for(state='attached')
        panel.locator('select[multiple], select[size]').last.select_option(index=2)
        press(page, 'Undo'); says(page, 'Back at “cycle 1: measure”, to the bit')
        press(page, 'Export'); says(page, 'Exported to')
        run(1)
        page.get_by_text('seen by the kernel: cycle 1: measure 3 done').wait_for()
        run(2)
        page.get_by_text('closed, False').wait_for()
        panel.wait_for(state='detached')
        wrong = [e for e in page.errors if e != 'no comm channel defined'] # what a widget of the page says whose other end has just been closed
        assert not wrong, wrong

def test_a_cycle_runs_alone_in_voila_and_is_stopped(tmp_path):
    with voila(tmp_path, CELL, night=True, width=800) as page:
        says(page, 'has a perplexity of')
        press(page, 'Run all'); says(page, 'Learned: perplexity')
        panel = page.locator('.plasticity-panel')
        panel.get_by_label('steps').fill('5000'); page.keyboard.press('Enter')
        press(page, 'Run all')
        panel.get_by_text(re.compile(r'of 15000 steps, about')).wait_for()
        press(page, 'Stop'); says(page, 'Stopped: the phase that was not finished is undone')
        panel.get_by_text('Next is Learn').wait_for()
