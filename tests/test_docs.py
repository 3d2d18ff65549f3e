"""The documentation site, built as `make docs` builds it: every notebook has its place, links lead somewhere, figures are drawn."""
import contextlib, functools, http.server, re, shutil, subprocess, sys, threading
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

@pytest.fixture(scope='module')
def site():
    res = subprocess.run([sys.executable, 'tools/docs.py'], cwd=root, capture_output=True, text=True, timeout=1800)
    assert res.returncode == 0, res.stdout + res.stderr
    return root/'_docs'

class Page(HTMLParser):
    "The ids and the links of one page."
    def __init__(self, f):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(f.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [(tag, a[k]) for k in ('href', 'src') if a.get(k)]

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

def test_pages_have_no_numbers_and_symbols_link_within_the_site(site):
    assert not [f for f in site.rglob('*.html') if re.match(r'\d', f.name)]
    assert not [f.name for f in site.rglob('*.html') if 'href="https://plasticity-nb.github.io' in re.sub(r'<link rel="canonical".*?>', '', f.read_text(encoding='utf-8'))]

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

@pytest.mark.skipif(not chromium, reason='no Chromium on this machine')
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_figures_are_drawn(site, scheme):
    from playwright.sync_api import sync_playwright
    pages = [f.relative_to(site).as_posix() for f in site.rglob('*.html') if 'class="plasticity-figure"' in f.read_text(encoding='utf-8')]
    assert pages, 'no page has a figure'
    with served(site) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        tab = browser.new_page(color_scheme=scheme, viewport={'width': 390, 'height': 800})
        errors = []
        tab.on('pageerror', lambda e: errors.append(str(e)))
        tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith(address) else r.abort())
        for page in pages:
            tab.goto(f'{address}/{page}')
            boxes = tab.locator('.plasticity-figure')
            for i in range(boxes.count()): boxes.nth(i).locator('.main-svg').first.wait_for(state='attached', timeout=20_000)
            assert set(boxes.evaluate_all('all => all.map(b => b.dataset.drawn)')) == {scheme}, page
            assert tab.evaluate('document.documentElement.scrollWidth - innerWidth') <= 1, f'{page} is wider than a phone'
        assert not errors, errors
        browser.close()
