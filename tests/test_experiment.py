"Experiments that are killed, doubled, spread over Ray workers, damaged or asked for nonsense."
import importlib.util, json, multiprocessing, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest
from plasticity_nb.errors import PlasticityError
from plasticity_nb.experiment.runner import PlasticityExperiment, graph, need_ray, plan_of
from plasticity_nb.runs import Run

SIZES = dict(device='cpu', block_len=32, eval_blocks=2, calibration_blocks=2, curve_blocks=1, looks=2, threads=1)
ASKED = dict(pruning_strategies=['taylor'], pruning_levels=[.3], fine_tuning_steps=3, plasticity_cycles=2, seeds=[0, 1], refit=True, teacher=True)
KILLS = 20

SCRIPT = '''
import json, sys, warnings
from plasticity_nb.experiment.runner import PlasticityExperiment
warnings.simplefilter('ignore')
sizes, asked, folder, path = json.loads(sys.argv[1])
if path: PlasticityExperiment.resume(path, verbose=False)
else: PlasticityExperiment('tiny', output_dir=folder, verbose=False, **sizes).run_experiment(**asked)
'''

def start(folder, path=None, **kw):
    "An experiment in a process of its own, which leads a group that can be killed as one."
    said = json.dumps([SIZES, ASKED | kw, str(folder), path and str(path)])
    return subprocess.Popen([sys.executable, '-c', SCRIPT, said], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1'), start_new_session=True)

def outcome(path): return {f: (Path(path)/f).read_bytes() for f in ('results.json', 'plasticity_results.json')}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "What an experiment gives that nobody disturbs: its run folder and the seconds it took from its first file to its last."
    folder = tmp_path_factory.mktemp('whole')
    e = PlasticityExperiment('tiny', output_dir=folder, verbose=False, **SIZES)
    e.run_experiment(**ASKED)
    times = [x['time'] for x in e.run.events()]
    return e.run.path, times[-1] - times[0]

def live(folder, path):
    "What a process does before it is killed: begin an experiment, or go on with it."
    os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    if path: PlasticityExperiment.resume(path, verbose=False)
    else: PlasticityExperiment('tiny', output_dir=folder, verbose=False, **SIZES).run_experiment(**ASKED)

@pytest.mark.skipif(sys.platform == 'win32', reason='SIGKILL exists on POSIX only')
def test_killed_and_resumed(whole, tmp_path):
    "Killed at random moments, in the middle of jobs and of files, and resumed each time: the same bytes as if nothing had happened."
    processes = multiprocessing.get_context('forkserver'); processes.set_forkserver_preload(['plasticity_nb.experiment.runner']) # so that a life begins at once
    path, seconds = whole
    chance, run, kills, midway = random.Random(4), None, 0, 0
    while kills < KILLS:
        p = processes.Process(target=live, args=(tmp_path, run)); p.start()
        while run is None:
            assert p.is_alive(); time.sleep(.01)
            run = next((f.parent for f in tmp_path.glob('run_*/jobs')), None)
        p.join(chance.uniform(0, 2 + seconds/2))
        if p.exitcode is None:
            p.kill(); p.join(); kills += 1
            midway += not (run/'results.json').exists()
        else: assert p.exitcode == 0
        if (run/'results.json').exists():  # it has finished: take some of it away and go on
            assert outcome(run) == outcome(path)
            for f in chance.sample(sorted((run/'jobs').glob('*.json')), 6) + [run/'results.json']: f.unlink()
    p = processes.Process(target=live, args=(tmp_path, run)); p.start(); p.join()
    assert p.exitcode == 0 and outcome(run) == outcome(path)
    assert midway >= KILLS//2
    assert not [f for f in (run/'jobs').iterdir() if f.name.startswith('.') or 'damaged' in f.name]

def busy(run):
    "Whether a process holds the run."
    try:
        with Run(run).hold(): return False
    except PlasticityError: return True

def test_two_processes(whole, tmp_path):
    "While one process is at work on a run, a second one is refused and changes nothing; when the first is dead, it may go on."
    first = start(tmp_path, seeds=[0, 1, 2], fine_tuning_steps=200)
    while not (found := [*tmp_path.glob('run_*/jobs')]): assert first.poll() is None, first.stderr.read(); time.sleep(.01)
    run = found[0].parent
    second = start(tmp_path, run); _, err = second.communicate()
    assert second.returncode == 1 and f'another process is at work on {run.name}' in err
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL); first.communicate()
    assert not busy(run)

def two_workers():
    "A local Ray instance; on a busy machine it may take several attempts, since Ray waits for its parts no longer than 30 seconds."
    ray = need_ray()
    for attempt in range(4):
        try: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); return ray
        except Exception as e:
            ray.shutdown()
            if 'timed out during startup' not in str(e): raise
    pytest.skip('Ray did not start within four times 30 seconds: the machine is too busy')

@pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='Ray is not installed: pip install plasticity_nb[ray]')
def test_ray(whole, tmp_path):
    "Two Ray workers give the same bytes as one process, also when they finish what another one began."
    ray = two_workers()
    try:
        e = PlasticityExperiment('tiny', output_dir=tmp_path, verbose=False, **SIZES)
        e.run_experiment(**ASKED, executor='ray')
        assert outcome(e.run.path) == outcome(whole[0])
        for f in sorted((e.run.path/'jobs').glob('*.json'))[::2]: f.unlink()
        PlasticityExperiment.resume(e.run.path, executor='ray', verbose=False)
        assert outcome(e.run.path) == outcome(whole[0])
        (e.run.path/'jobs'/'teacher-0.json').unlink(); (e.run.path/'jobs'/'dense-0.json').unlink()
        config = json.loads((e.run.path/'config.json').read_text()); config['config']['learning_rate'] = 1e30
        (e.run.path/'config.json').write_text(json.dumps(config))
        with pytest.raises(PlasticityError, match='use a smaller learning rate'): PlasticityExperiment.resume(e.run.path, executor='ray', verbose=False)
    finally: ray.shutdown()

def test_no_ray(monkeypatch, tmp_path):
    "Without Ray there is one sentence, and no folder."
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(PlasticityError, match=r"pip install 'plasticity_nb\[ray\]'"): PlasticityExperiment('tiny', output_dir=tmp_path/'out').run_experiment(executor='ray')
    assert not (tmp_path/'out').exists()

def test_damaged_files(whole, tmp_path):
    "A damaged record or tensor file is said and set aside, its job done again: the same bytes in the end."
    e = PlasticityExperiment('tiny', output_dir=tmp_path, verbose=False, **SIZES); e.run_experiment(**ASKED)
    jobs = e.run.path/'jobs'
    torn = jobs/'dense-1.json'; torn.write_bytes(torn.read_bytes()[:40])
    cut = jobs/'prune-taylor-0.3.safetensors'; cut.write_bytes(cut.read_bytes()[:-100])
    (jobs/'cell-taylor-0.3-0.json').unlink()
    with pytest.warns(UserWarning, match='is damaged') as said: PlasticityExperiment.resume(e.run.path, verbose=False)
    assert sorted(w.message.args[0].split()[4] for w in said if 'is damaged' in str(w.message)) == ['dense-1', 'prune-taylor-0.3']
    assert outcome(e.run.path) == outcome(whole[0]) and len([f for f in jobs.iterdir() if 'damaged' in f.name]) == 2

def test_other_versions(whole, tmp_path):
    "Jobs of two versions of torch are not mixed; a finished run is still given."
    e = PlasticityExperiment('tiny', output_dir=tmp_path, verbose=False, **SIZES); e.run_experiment(**ASKED | dict(seeds=[0], plasticity_cycles=1))
    config = json.loads((e.run.path/'config.json').read_text()); config['config']['torch'] = '1.0'
    (e.run.path/'config.json').write_text(json.dumps(config))
    assert PlasticityExperiment.resume(e.run.path, verbose=False)['seeds'] == [0]
    (e.run.path/'jobs'/'dense-0.json').unlink()
    with pytest.raises(PlasticityError, match='was begun with torch 1.0'): PlasticityExperiment.resume(e.run.path, verbose=False)

def test_what_is_shared(whole):
    "A teacher, a refit and the beginning of a deterministic cell are made once; lots are drawn for each seed."
    run = Run.open(whole[0]); names = {j.name for j in graph(plan_of(run))}
    assert {f.stem for f in (run.path/'jobs').glob('*.json')} == names
    assert {'teacher-0', 'teacher-1', 'prune-taylor-0.3', 'prune-random-0.3-0', 'prune-random-0.3-1'} < names and 'prune-taylor-0.3-0' not in names
    r, cells = run.load_json('results.json'), run.load_json('plasticity_results.json')
    used = r['tokens']['by_job']
    assert r['tokens']['shared'] == sum(used.values()) and used['teacher-0'] == 2*3*2*32
    by_hand = sum(used[f'cell-taylor-0.3-{s}'] + used['prune-taylor-0.3'] + used['baseline'] + used[f'teacher-{s}'] + used[f'dense-{s}'] + used[f'cell-random-0.3-{s}'] + used[f'prune-random-0.3-{s}']
                  + used['baseline'] + used[f'teacher-{s}'] + used[f'dense-{s}'] + used[f'cell-random-0.3-{s}'] + used[f'prune-random-0.3-{s}'] for s in (0, 1))
    assert r['tokens']['plain'] == by_hand
    first, second = (cells['taylor']['0.3']['cycles'][c]['seeds'] for c in (0, 1))
    assert first['0']['pruned'] == first['1']['pruned'] and len(second['0']['pruned']) == round(.3*first['0']['phases']['settle']['active_heads'])
    assert all(x['low'] is None and x['n'] <= 2 for row in r['rows'] for x in row.values() if isinstance(x, dict))

BAD = [(dict(pruning_strategies=['entropie']), "there is no pruning strategy 'entropie'"), (dict(pruning_levels=[30]), 'pruning level 30.0 is outside 0...1'), (dict(pruning_levels=[]), 'there are no levels'),
       (dict(seeds=[1, 1]), 'name one twice'), (dict(fine_tuning_steps=0), 'steps 0'), (dict(plasticity_cycles='2'), "cycles '2'"), (dict(executor='abacus'), "no executor 'abacus'")]

@pytest.mark.parametrize('asked, said', BAD)
def test_bad_input(asked, said, tmp_path):
    "One sentence, and nothing is written."
    with pytest.raises(PlasticityError, match=said): PlasticityExperiment('tiny', output_dir=tmp_path/'out', verbose=False, **SIZES).run_experiment(**asked)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('made, said', [(dict(model_name='./nowhere'), 'there is no folder'), (dict(dataset='nothing.txt'), 'no file or folder'), (dict(block_len=9999), 'longer than the 512 positions'), (dict(device='abacus'), 'abacus'),
                                        (dict(threads=0), 'threads 0'), (dict(output_dir='/proc/here'), 'cannot be written')])
def test_bad_settings(made, said, tmp_path):
    with pytest.raises(PlasticityError, match=said): PlasticityExperiment(**dict(output_dir=tmp_path/'out', verbose=False) | SIZES | made).run_experiment()
    assert not (tmp_path/'out').exists()
