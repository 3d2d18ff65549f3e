"The dashboards of a run and of an experiment in a real browser: figures drawn, nothing from the network, hostile text inert, both themes, a telephone."
import json, os, shutil, time
from pathlib import Path
import nbformat, pytest
from plasticity_nb.compare import write_comparison
from plasticity_nb.dashboard import write_dashboard
from plasticity_nb.look import PAGE
from plasticity_nb.runs import Run

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
HOSTILE = '''</script><img src="http://example.invalid/x.png" onerror="window.hacked=1"><b onclick=1>&amp;'"<a href="javascript:window.hacked=1">x</a>'''

def made_up(name, function, **kw):
    "Made-up results, from the cell of a notebook that makes them."
    nb = nbformat.read(Path(__file__).parent.parent/'nbs'/name, 4)
    space = {}
    exec('import math\n' + next(c.source for c in nb.cells if '# synthetic' in c.source), space)
    return space[function](**kw)

def synthetic(**kw): return made_up('08_dashboard.ipynb', 'synthetic_results', **kw)
def experiment(**kw): return made_up('08_compare.ipynb', 'made_up_experiment', **kw)

def poison(o):
    "`o` with every text exchanged for an attack."
    if isinstance(o, dict): return {k: poison(v) for k, v in o.items()}
    if isinstance(o, list): return [poison(v) for v in o]
    return HOSTILE if isinstance(o, str) else o

@pytest.fixture(scope='module')
def browser():
    if not CHROMIUM:
        if os.environ.get('CI'): pytest.fail('Chromium is missing: apt-get install chromium')
        pytest.skip('Chromium is missing: apt-get install chromium')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()

class Visit:
    "A dashboard opened in the browser, and what the browser said."
    FITS = "[...document.querySelectorAll('.plasticity-figure')].every(f => f.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth + 1)"
    def __init__(self, browser, folder, results, system='cycle', config={}, event='start', width=1280, scheme='light', cells=None):
        run = Run.create(system, folder, config)
        run.event(event, text=event)
        run.results(results)
        if cells: run.save_json('plasticity_results.json', cells)
        self.file, self.said, self.asked = (write_comparison if cells else write_dashboard)(run.path), [], []
        self.page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        self.page.on('console', lambda m: self.said.append(m.text))
        self.page.on('pageerror', lambda e: self.said.append(str(e)))
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.goto(self.file.as_uri())
        self.page.wait_for_selector('body[data-ready=yes]', state='attached')

    def js(self, code): return self.page.evaluate(code)

    def until(self, code, seconds=15):
        "Wait until `code` is true. (The page's policy forbids the eval that playwright's own waiting needs.)"
        end = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < end, f'never came true: {code}'
            self.page.wait_for_timeout(30)

    def check(self, n_figures):
        "What holds for every dashboard."
        assert self.said == []
        assert [a for a in self.asked if not a.startswith(('file:', 'data:', 'blob:'))] == []
        assert self.js("document.querySelectorAll('.plasticity-figure').length") == n_figures
        assert self.js("document.querySelectorAll('.plasticity-figure[data-drawn] .cartesianlayer .subplot').length") >= n_figures
        assert self.js('document.documentElement.scrollWidth <= innerWidth')
        assert self.js(self.FITS)

    def turn_to_a_dark_telephone(self, n_figures):
        "The same page made narrow and dark."
        self.page.set_viewport_size(dict(width=390, height=844))
        self.page.emulate_media(color_scheme='dark')
        self.until(f"document.querySelectorAll('.plasticity-figure[data-drawn=dark]').length == {n_figures}")
        self.until(self.FITS)
        self.check(n_figures)

@pytest.mark.parametrize('shape,n_figures', [
    (dict(), 8), (dict(heads=(9,)*30, n_cycles=1), 6), (dict(heads=(8, 3, 1, 5), n_cycles=10, controls=False), 15), (dict(n_cycles=0), 2),
    (dict(n_cycles=6, adaptive=True), 13), (dict(n_cycles=14, adaptive=True), 8)])
def test_shapes(browser, tmp_path, shape, n_figures):
    v = Visit(browser, tmp_path, synthetic(**shape))
    v.check(n_figures)
    assert ('not measured in this run' in v.page.inner_text('body')) == (not shape.get('controls', True) or shape.get('n_cycles') == 0)
    v.turn_to_a_dark_telephone(n_figures)
    v.page.close()

def test_dark_on_a_telephone(browser, tmp_path):
    v = Visit(browser, tmp_path, synthetic(), width=390, scheme='dark')
    v.check(8)
    assert v.js("[...new Set([...document.querySelectorAll('.plasticity-figure')].map(f => f.dataset.drawn))].join()") == 'dark'
    v.page.close()

def test_hostile_text_is_text(browser, tmp_path):
    v = Visit(browser, tmp_path, poison(synthetic()), system=HOSTILE, config={HOSTILE: HOSTILE}, event=HOSTILE)
    v.page.click('summary')
    v.page.mouse.move(300, 1000)
    for i in range(8): v.page.hover(f'.plasticity-figure >> nth={i}', force=True)
    v.check(8)
    assert v.js('window.hacked') is None
    assert v.js("document.querySelectorAll('img, b, a[href^=javascript], a[href^=http]').length") == 0
    text = v.page.inner_text('body')
    assert text.count(HOSTILE) >= 8 and HOSTILE in v.page.title()
    v.page.close()

def test_the_page_refuses_what_is_not_its_own(browser, tmp_path):
    "Even if something slipped in, the policy of the page stops scripts and the network."
    v = Visit(browser, tmp_path, synthetic())
    v.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\"><img src=\"http://127.0.0.1:9/x.png\">')")
    v.js("() => { const s = document.createElement('script'); s.textContent = 'window.hacked=2'; document.body.append(s) }")
    v.until("document.querySelectorAll('img')[1].complete")
    assert v.js('window.hacked') is None
    assert v.js("fetch('http://127.0.0.1:9/').then(() => 'came through', () => 'refused')") == 'refused'
    assert any('Content Security Policy' in s for s in v.said)
    v.page.close()

def test_theme_follows_the_reader(browser, tmp_path):
    v = Visit(browser, tmp_path, synthetic())
    v.page.emulate_media(color_scheme='dark')
    v.page.wait_for_selector('.plasticity-figure[data-drawn=dark]')
    v.until("document.querySelectorAll('.plasticity-figure[data-drawn=dark]').length == 8")
    red, green, blue = (int(PAGE['paper'][1][i:i+2], 16) for i in (1, 3, 5))
    assert v.js('getComputedStyle(document.body).backgroundColor') == f'rgb({red}, {green}, {blue})'
    v.check(8)
    v.page.close()

def test_slider_changes_the_cycle(browser, tmp_path):
    v = Visit(browser, tmp_path, synthetic())
    figure = v.page.locator('.plasticity-figure').nth(6)
    assert 'importance in cycle 3' in figure.inner_text()
    figure.locator('.slider-rail-touch-rect').click(position=dict(x=6, y=5))
    v.until("document.querySelectorAll('.plasticity-figure')[6].textContent.includes('importance in cycle 1')")
    assert v.said == []
    v.page.close()

def test_without_scripts_the_numbers_remain(browser, tmp_path):
    v = Visit(browser, tmp_path, synthetic())
    plain = browser.new_page(java_script_enabled=False)
    plain.goto(v.file.as_uri())
    assert 'The figures need JavaScript' in plain.inner_text('body') and plain.locator('table').count() >= 2
    plain.close(); v.page.close()

def test_cycles_taken_back_are_seen(browser, tmp_path):
    v = Visit(browser, tmp_path, synthetic(n_cycles=6, adaptive=True))
    curve = v.page.locator('.plasticity-figure').first
    assert curve.inner_text().count('taken back') == 3 and 'best score' in curve.inner_text() # two cycles and the legend
    assert v.js("document.querySelectorAll('.plasticity-figure')[0].querySelectorAll('.scatterlayer .trace').length") == 6
    table = v.page.locator('table').first.inner_text()
    assert table.count('taken back') == 2 and table.count('kept, best') == 1
    v.page.close()

@pytest.mark.parametrize('shape,n_figures', [
    (dict(), 8), (dict(strategies=('random',), levels=(.5,), seeds=(7,)), 6), (dict(heads=(8, 3, 1, 5), cycles=2, seeds=(0, 1), regrow=False), 7),
    (dict(heads=(9,)*30, strategies=('random', 'entropy', 'entropy_high', 'magnitude', 'output_norm', 'redundancy', 'fisher', 'taylor'), levels=(.1, .3)), 7)])
def test_experiments(browser, tmp_path, shape, n_figures):
    results, cells = experiment(**shape)
    v = Visit(browser, tmp_path, results, system='experiment', cells=cells)
    v.check(n_figures)
    v.page.click('summary')
    assert ('no difference on this page counts yet' in v.page.inner_text('body')) == (len(results['seeds']) < 3)
    v.turn_to_a_dark_telephone(n_figures)
    v.page.close()

def test_no_gain_without_its_control(browser, tmp_path):
    results, cells = experiment()
    v = Visit(browser, tmp_path, dict(results, dense={}), system='experiment', cells=cells)
    text = v.page.inner_text('main > ul')
    assert text.count('no gain is stated, since the dense control of seed 0, 1, 2 is missing') == 9
    assert 'better' not in text and 'worse' not in text
    v.page.close()

def test_hostile_text_of_an_experiment_is_text(browser, tmp_path):
    results, cells = (json.loads(json.dumps(o).replace('"taylor"', json.dumps(HOSTILE))) for o in experiment(text=HOSTILE))
    v = Visit(browser, tmp_path, results, system='experiment', config={HOSTILE: HOSTILE}, cells=cells)
    v.page.click('summary')
    for i in range(8): v.page.hover(f'.plasticity-figure >> nth={i}', force=True)
    v.check(8)
    assert v.js('window.hacked') is None
    assert v.js("document.querySelectorAll('img, b, a[href^=javascript], a[href^=http]').length") == 0
    v.page.close()
