"""The documentation site, built as `make docs` builds it: every notebook has its place, links lead somewhere, every public name
has its heading, no output is an error, and a browser draws every page and figure, in light and dark, no wider than a phone."""
import ast, contextlib, functools, http.server, json, os, re, shutil, subprocess, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest, yaml

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'

def sidebar_pages(entries):
    for e in entries:
        if isinstance(e, str): yield e
        elif 'contents' in e: yield from sidebar_pages(e['contents'])
        elif 'href' in e: yield e['href']

def test_the_sidebar_and_the_notebooks_agree():
    config = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    listed = list(sidebar_pages(config['website']['sidebar']['contents']))
    there = {f.relative_to(nbs).as_posix() for f in nbs.rglob('*.ipynb') if not any(p[0] in '_.' for p in f.relative_to(nbs).parts)}
    assert len(listed) == len(set(listed)), 'a page is listed twice'
    assert set(listed) == there, f'only in the sidebar: {set(listed)-there}; not in the sidebar: {there-set(listed)}'

def notebook_outputs():
    "(notebook, output) of every cell of every notebook."
    for f in sorted(nbs.rglob('*.ipynb')):
        if any(p[0] in '_.' for p in f.relative_to(nbs).parts): continue
        for cell in json.loads(f.read_text(encoding='utf-8'))['cells']:
            for out in cell.get('outputs', []): yield f.relative_to(nbs).as_posix(), out

def failure(out):
    "What an output shows of an error or a warning that nobody meant to show, or nothing."
    if out['output_type'] == 'error': return f"{out['ename']}: {out['evalue']}"
    texts = [out.get('text', []), *(v for k, v in out.get('data', {}).items() if k.startswith('text/'))]
    said = re.sub(r'\x1b\[[\d;]*m', '', '\n'.join(''.join(t) for t in texts))
    found = re.search(r'Traceback \(most recent call last\)|^\S+\.py:\d+: \w*Warning\b', said, re.M)
    return found and said[found.start():][:200]

def test_no_output_is_an_error():
    shown = [f'{f}: {said}' for f, out in notebook_outputs() if (said := failure(out))]
    assert not shown, '\n'.join(shown)

@pytest.mark.parametrize('out', [
    dict(output_type='error', ename='ValueError', evalue='no', traceback=[]),
    dict(output_type='stream', name='stdout', text=['\x1b[31mTraceback\x1b[0m (most recent call last)\n']),
    dict(output_type='stream', name='stderr', text=['/a/b.py:3: UserWarning: look\n']),
    dict(output_type='display_data', data={'text/html': '<pre>Traceback (most recent call last)</pre>'})])
def test_a_failure_is_found(out): assert failure(out)

def test_no_failure_is_found_where_there_is_none():
    assert not failure(dict(output_type='stream', name='stdout', text=['ValueError is a class\n']))

@pytest.fixture(scope='module')
def site():
    res = subprocess.run([sys.executable, 'tools/docs.py'], cwd=root, capture_output=True, text=True, timeout=1800)
    assert res.returncode == 0, res.stdout + res.stderr
    return root/'_docs'

class Page(HTMLParser):
    "The ids, the links and the headings of one page."
    def __init__(self, f):
        super().__init__()
        self.ids, self.links, self.headings, self.level = set(), [], [], None
        self.feed(f.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [(tag, a[k]) for k in ('href', 'src') if a.get(k)]
        if re.fullmatch('h[2-6]', tag): self.level, self.headings = tag, [*self.headings, '']
    def handle_endtag(self, tag):
        if tag == self.level: self.level = None
    def handle_data(self, data):
        if self.level: self.headings[-1] += data

def test_links_lead_somewhere(site):
    pages = {f: Page(f) for f in site.rglob('*.html')}
    broken = []
    for f, page in pages.items():
        for tag, link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            target = (f.parent/unquote(url.path)).resolve() if url.path else f
            if target.is_dir(): target = target/'index.html'
            if not target.exists() or (tag == 'a' and target in pages and url.fragment and unquote(url.fragment) not in pages[target].ids):
                broken.append(f'{f.relative_to(site)}: {link}')
    assert not broken, '\n'.join(broken)

def modules():
    "(module, page of its notebook, its public names) of the whole package."
    for f in sorted((root/'plasticity_nb').rglob('*.py')):
        text = f.read_text(encoding='utf-8')
        source = re.search(r'File to edit: (?:\.\./)*nbs/(\S+)\.ipynb', text)
        if not source: continue
        names = next(n.value for n in ast.parse(text).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')
        yield f.relative_to(root).as_posix(), re.sub(r'(^|/)\d+[a-z0-9]*_(\w+)$', r'\1\2', source[1]) + '.html', ast.literal_eval(names)

def test_every_public_name_has_a_heading(site):
    missing = []
    for module, page, names in modules():
        if any(n[0] != '_' for n in names): assert (site/page).exists(), f'{module} has no page {page}'
        page = Page(site/page)
        headings = {h.strip() for h in page.headings}
        missing += [f'{module}: {n}' for n in names if n[0] != '_' and not (n in headings and {n, n.lower()} & page.ids)]
    assert not missing, '\n'.join(missing)

def test_pages_have_no_numbers_and_symbols_link_within_the_site(site):
    assert not [f for f in site.rglob('*.html') if re.match(r'\d', f.name)]
    assert not [f.name for f in site.rglob('*.html') if 'href="https://plasticity-nb.github.io' in re.sub(r'<link rel="canonical".*?>', '', f.read_text(encoding='utf-8'))]

def test_no_link_is_left_as_it_was_written(site):
    left = [f'{f.relative_to(site)}: {m[0]}' for f in site.rglob('*.html') for m in re.finditer(r'\]\([^\s()<>]*\.(ipynb|html)[^\s()<>]*\)', f.read_text(encoding='utf-8'))]
    assert not left, '\n'.join(left)

def test_one_plotly_for_the_whole_site(site):
    assert [f.relative_to(site).as_posix() for f in site.rglob('plotly*.js')] == ['plotly.min.js']
    assert not [f for f in site.rglob('*.html') if f.stat().st_size > 3_000_000]

@contextlib.contextmanager
def served(folder):
    "Serve `folder` on this machine only; gives its address."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally: server.shutdown(); server.server_close()

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

TOO_WIDE = '''() => {
  const scrolls = e => { for (let a = e.parentElement; a && a.tagName != 'MAIN'; a = a.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(a).overflowX)) return a.getBoundingClientRect().right <= innerWidth + 1; };
  return [...document.querySelectorAll('main, main *')].filter(e => { const r = e.getBoundingClientRect(); return r.width && r.right > innerWidth + 1 && !scrolls(e) })
    .map(e => `${e.tagName.toLowerCase()} ${e.textContent.slice(0, 40)}`).slice(0, 3) }'''
# What stands out of the window and cannot be scrolled to: the page itself never scrolls sideways, it cuts.

@pytest.mark.skipif(not chromium and not os.environ.get('CI'), reason='no Chromium on this machine')
def test_pages_are_drawn(site):
    "On a phone, by day; and drawn anew when night falls."
    assert chromium, 'there is no Chromium here, and CI must not do without'
    from playwright.sync_api import sync_playwright
    pages = sorted(f.relative_to(site).as_posix() for f in site.rglob('*.html'))
    assert any('class="plasticity-figure"' in (site/f).read_text(encoding='utf-8') for f in pages), 'no page has a figure'
    said, page = [], None
    with served(site) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        tab = browser.new_page(viewport={'width': 390, 'height': 800})
        own = lambda url: not url.startswith('http') or url.startswith(address)  # what lies elsewhere (the typesetter of formulas) is not asked for
        tab.route('**/*', lambda r: r.continue_() if own(r.request.url) else r.abort())
        tab.on('pageerror', lambda e: said.append(f'{page}: {e}'))
        tab.on('console', lambda m: said.append(f'{page}: {m.text}') if m.type == 'error' and own(m.location.get('url', '')) else None)
        for page in pages:
            tab.emulate_media(color_scheme='light')
            tab.goto(f'{address}/{page}')
            boxes = tab.locator('.plasticity-figure')
            for i in range(boxes.count()): boxes.nth(i).locator('.main-svg').first.wait_for(state='attached', timeout=20_000)
            for scheme in ('light', 'dark'):
                tab.emulate_media(color_scheme=scheme)
                try: tab.wait_for_function("s => [...document.querySelectorAll('.plasticity-figure')].every(b => b.dataset.drawn == s)", arg=scheme, timeout=20_000)
                except Exception: said.append(f"{page}: figures are drawn for {boxes.evaluate_all('all => all.map(b => b.dataset.drawn)')} readers, and this one is {scheme}")
                if wide := tab.evaluate(TOO_WIDE): said.append(f'{page}: wider than a phone ({scheme}): {wide}')
            lost = tab.evaluate('[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 100))')
            if lost: said.append(f'{page}: not to be seen: {lost}')
        tab.unroute_all(behavior='ignoreErrors')
        browser.close()
    assert not said, '\n'.join(said)
