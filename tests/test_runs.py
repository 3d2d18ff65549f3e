"Run folders under processes that are killed, that race, and that run out of room."
import json, signal, subprocess, sys, threading, time, warnings
import pytest
from plasticity_nb.errors import PlasticityError
from plasticity_nb.runs import Run, read_lines

def python(code, *args):
    "Start `code` in a process of its own."
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

WRITER = '''
import sys
from plasticity_nb.runs import Run
run, n = Run.open(sys.argv[1]), 0
print('ready', flush=True)
while True:
    run.event('step', n=n, text='x'*5000)
    run.results(dict(n=n, text='y'*50_000))
    with run.checkpoint(f'c_{sys.argv[2]}_{n}') as folder:
        for i in range(3): (folder/f'{i}.bin').write_bytes(b'z'*20_000)
    n += 1
'''

def test_killed_writer(tmp_path):
    "Kill a writer at many different moments; everything but the last, torn line is whole each time."
    run = Run.create('cycle', tmp_path)
    for life in range(8):
        p = python(WRITER, run.path, life)
        assert p.stdout.readline() == 'ready\n', p.stderr.read()
        time.sleep(.02 + .013*life)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # torn lines are allowed here; that they are counted is checked below
            events = run.events()
        assert len(events.torn) <= life + 1
        if (run.path/'results.json').exists(): assert len(run.load_json('results.json')['text']) == 50_000
        for c in run.checkpoints(): assert [f.stat().st_size for f in sorted(c.iterdir())] == [20_000]*3
    assert len(events) > 8 and len(run.checkpoints()) > 8
    run.event('end')
    assert run.events()[-1]['kind'] == 'end'

def test_torn_at_every_byte(tmp_path):
    "Whatever byte the last line was cut at, the lines before it and the next one are read."
    whole = b'{"kind": "a", "text": "\xc3\xa9\\n"}\n'
    for cut in range(len(whole)):
        path = tmp_path/f'{cut}.jsonl'
        path.write_bytes(whole + whole[:cut])
        from plasticity_nb.runs import append_line
        append_line(path, {'kind': 'b'})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            lines = read_lines(path)
        torn = 0 < cut < len(whole) - 1
        assert [l['kind'] for l in lines] == ['a', 'b'] if cut < len(whole)-1 else ['a', 'a', 'b']
        assert len(lines.torn) == torn and bool(said) == torn

APPENDER = '''
import sys
from plasticity_nb.runs import Run
run = Run.open(sys.argv[1])
print('ready', flush=True); sys.stdin.readline()
for n in range(300): run.event('step', who=int(sys.argv[2]), n=n, text='x'*(n*37 % 9000))
'''

def test_processes_append_at_once(tmp_path):
    "Lines of several processes never mix, and each process's lines stay in order."
    run, watched = Run.create('cycle', tmp_path), []
    ps = [subprocess.Popen([sys.executable, '-c', APPENDER, str(run.path), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(4)]
    for p in ps: assert p.stdout.readline() == 'ready\n'
    for p in ps: p.stdin.write('go\n'); p.stdin.flush()
    for p in ps: p.communicate(); assert p.returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        events = run.events()
    assert len(events) == 4*300
    for i in range(4): assert [e['n'] for e in events if e['who'] == i] == list(range(300))
    assert all(len(e['text']) == e['n']*37 % 9000 for e in events)

CREATOR = '''
import sys
from plasticity_nb.runs import Run
print('ready', flush=True); sys.stdin.readline()
print(*[Run.create('cycle', sys.argv[1], dict(who=sys.argv[2])).name for _ in range(25)])
'''

def test_processes_create_at_once(tmp_path):
    "Runs made by several processes in the same second get folders of their own."
    ps = [subprocess.Popen([sys.executable, '-c', CREATOR, str(tmp_path/'out'), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(3)]
    for p in ps: assert p.stdout.readline() == 'ready\n'
    for p in ps: p.stdin.write('go\n'); p.stdin.flush()
    names = {i: p.communicate()[0].split() for i, p in enumerate(ps)}
    assert len({n for ns in names.values() for n in ns}) == 75
    assert len(list((tmp_path/'out').iterdir())) == 75
    for i, ns in names.items():
        for n in ns: assert Run.open(tmp_path/'out'/n).config['config'] == {'who': str(i)}

def test_reader_beside_a_writer(tmp_path):
    "Whoever reads results.json while it is being replaced sees a whole one."
    run, stop = Run.create('cycle', tmp_path), threading.Event()
    run.results(dict(n=0, text='y'*100_000))
    def write():
        n = 0
        while not stop.is_set(): n += 1; run.results(dict(n=n, text='y'*100_000))
    t = threading.Thread(target=write); t.start()
    try:
        for _ in range(200): assert len(json.loads((run.path/'results.json').read_text())['text']) == 100_000
    finally: stop.set(); t.join()
    assert sorted(p.name for p in run.path.iterdir()) == ['checkpoints', 'config.json', 'events.jsonl', 'results.json']

FULL = '''
import resource, sys
from pathlib import Path
from plasticity_nb.errors import PlasticityError
from plasticity_nb.runs import Run
out = Path(sys.argv[1])
run = Run.create('cycle', out/'a')
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))  # every file ends after 10 bytes, as on a full disk
for f in (lambda: Run.create('cycle', out/'b'/'c'), lambda: run.results(dict(text='long enough')), lambda: run.event('long enough')):
    try: f(); print('no error')
    except PlasticityError as e: print(e)
'''

@pytest.mark.skipif(sys.platform == 'win32', reason='limits of this kind exist on POSIX only')
def test_full_disk(tmp_path):
    "A disk without room gives a sentence and leaves nothing half-written but the line that was cut, which reading recognises."
    p = python(FULL, tmp_path)
    out, err = p.communicate()
    assert not err and out.count('cannot be written') == 3, out + err
    assert [x.name for x in tmp_path.iterdir()] == ['a']
    run = Run.open(next((tmp_path/'a').iterdir()))
    assert sorted(x.name for x in run.path.iterdir()) == ['checkpoints', 'config.json', 'events.jsonl']
    with pytest.warns(UserWarning, match='torn'): assert len(run.events().torn) == 1
    run.event('again')
    with pytest.warns(UserWarning, match='torn'): assert [e['kind'] for e in run.events()] == ['again']

def test_unwritable_folder(tmp_path):
    "A file in the way: one sentence, nothing left."
    (tmp_path/'file').write_text('')
    with pytest.raises(PlasticityError, match='choose another one'): Run.create('cycle', tmp_path/'file'/'runs')
    assert [p.name for p in tmp_path.iterdir()] == ['file']
