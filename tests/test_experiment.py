"Experiments that are killed, doubled, spread over Ray workers, damaged or asked for nonsense."
import importlib.util, json, multiprocessing, os, random, shutil, sys, time
from pathlib import Path
import pytest
from plasticity_nb.cycle.prune import STRATEGIES, importance, strategy
from plasticity_nb.errors import PlasticityError
from plasticity_nb.experiment import runner
from plasticity_nb.experiment.runner import PlasticityExperiment, graph, need_ray, plan_of
from plasticity_nb.models import load_lm
from plasticity_nb.runs import Run

SIZES = dict(dataset=str(Path(__file__).parents[1]/'LICENSE'), device='cpu', block_len=32, eval_blocks=2, calibration_blocks=2, curve_blocks=1, looks=2, gate_lr=.4, threads=1)
ASKED = dict(pruning_strategies=['taylor'], pruning_levels=[.3], fine_tuning_steps=3, plasticity_cycles=2, seeds=[0, 1], refit=True, teacher=True)
KILLS = 20

def outcome(path): return {f: (Path(path)/f).read_bytes() for f in ('results.json', 'plasticity_results.json')}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "What an experiment gives that nobody disturbs: its run folder and the seconds it took from its first file to its last."
    folder = tmp_path_factory.mktemp('whole')
    e = PlasticityExperiment('tiny', output_dir=folder, verbose=False, **SIZES)
    e.run_experiment(**ASKED)
    times = [x['time'] for x in e.run.events()]
    return e.run.path, times[-1] - times[0]

@pytest.fixture
def unfinished(whole, tmp_path):
    "A copy of that experiment in which two jobs and the results are missing; what its config says can be changed."
    path = tmp_path/'run_copy'; shutil.copytree(whole[0], path)
    for f in ('jobs/dense-1.json', 'jobs/cell-taylor-0.3-0.json', 'results.json'): (path/f).unlink()
    return path

def reconfigure(path, **changed):
    config = json.loads((path/'config.json').read_text()); config['config'] |= changed
    (path/'config.json').write_text(json.dumps(config))

def live(folder, path, asked=ASKED):
    "What a process does before it is killed: begin an experiment, or go on with it."
    os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    if path: PlasticityExperiment.resume(path, verbose=False)
    else: PlasticityExperiment('tiny', output_dir=folder, verbose=False, **SIZES).run_experiment(**asked)

def processes():
    "Processes that begin at once, since what they import is there already."
    found = multiprocessing.get_context('forkserver'); found.set_forkserver_preload(['plasticity_nb.experiment.runner'])
    return found

@pytest.mark.skipif(sys.platform == 'win32', reason='SIGKILL exists on POSIX only')
def test_killed_and_resumed(whole, tmp_path):
    "Killed at random moments, in the middle of jobs and of files, and resumed each time: the same bytes as if nothing had happened."
    path, seconds = whole
    chance, run, kills, midway = random.Random(4), None, 0, 0
    while kills < KILLS:
        p = processes().Process(target=live, args=(tmp_path, run)); p.start()
        while run is None:
            assert p.is_alive(); time.sleep(.01)
            run = next((f.parent for f in tmp_path.glob('run_*/jobs')), None)
        p.join(chance.uniform(0, 1 + seconds/3))
        if p.exitcode is None:
            p.kill(); p.join(); kills += 1
            midway += not (run/'results.json').exists()
        else: assert p.exitcode == 0
        if (run/'results.json').exists():  # it has finished: take some of it away and go on
            assert outcome(run) == outcome(path)
            for f in chance.sample(sorted((run/'jobs').glob('*.json')), 6) + [run/'results.json']: f.unlink()
    p = processes().Process(target=live, args=(tmp_path, run)); p.start(); p.join()
    assert p.exitcode == 0 and outcome(run) == outcome(path)
    assert midway >= KILLS//2
    assert not [f for f in (run/'jobs').iterdir() if f.name.startswith('.') or 'damaged' in f.name]

@pytest.mark.skipif(sys.platform == 'win32', reason='SIGKILL exists on POSIX only')
def test_two_processes(tmp_path):
    "While one process is at work on a run, a second one is refused and changes nothing; when the first is dead, it may go on."
    first = processes().Process(target=live, args=(tmp_path, None, ASKED | dict(seeds=[0, 1, 2], fine_tuning_steps=200))); first.start()
    while not (found := [*tmp_path.glob('run_*/jobs')]): assert first.is_alive(); time.sleep(.01)
    run = found[0].parent
    with pytest.raises(PlasticityError, match=f'another process is at work on {run.name}'): PlasticityExperiment.resume(run)
    assert first.is_alive()
    first.kill(); first.join()
    with Run(run).hold(): pass

def two_workers():
    "A local Ray instance; on a busy machine it may take several attempts, since Ray waits for its parts no longer than 30 seconds."
    ray = need_ray(); os.environ.setdefault('RAY_worker_niceness', '0') # else its workers wait for everybody else on a busy machine
    for attempt in range(4):
        try: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); return ray
        except Exception as e:
            ray.shutdown()
            if 'timed out during startup' not in str(e): raise
    pytest.skip('Ray did not start within four times 30 seconds: the machine is too busy')

@pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='Ray is not installed: pip install plasticity_nb[ray]')
def test_ray(whole, tmp_path, monkeypatch):
    "Two Ray workers give the same bytes as one process, also when they finish what another one began, and with a strategy of one's own; who is stopped writes no more."
    ray = two_workers()
    try:
        e = PlasticityExperiment('tiny', output_dir=tmp_path, verbose=False, **SIZES)
        e.run_experiment(**ASKED, executor='ray')
        assert outcome(e.run.path) == outcome(whole[0])
        for f in [*sorted((e.run.path/'jobs').glob('*.json'))[::2], e.run.path/'results.json']: f.unlink()
        PlasticityExperiment.resume(e.run.path, executor='ray', verbose=False)
        assert outcome(e.run.path) == outcome(whole[0])
        for f in ('jobs/teacher-0.json', 'jobs/dense-0.json', 'results.json'): (e.run.path/f).unlink()
        reconfigure(e.run.path, learning_rate=1e30)
        with pytest.raises(PlasticityError, match='use a smaller learning rate'): PlasticityExperiment.resume(e.run.path, executor='ray', verbose=False)
        reconfigure(e.run.path, threads=3)
        with pytest.raises(PlasticityError, match='takes 3 threads and the largest computer of Ray has 2 cores'): PlasticityExperiment.resume(e.run.path, executor='ray', verbose=False)
        @strategy('turned')
        def turned(gated, blocks, seed=0): return -importance(gated, 'magnitude', blocks)
        found = []
        for executor in ('local', 'ray'):  # the workers have never heard of this strategy
            e.run_experiment(**ASKED | dict(pruning_strategies=['turned'], fine_tuning_steps=1, plasticity_cycles=1, seeds=[0], teacher=False), executor=executor)
            found.append(outcome(e.run.path))
        assert found[0] == found[1] and b'turned' in found[0]['results.json']
        def job(path, name, own):  # one is over at once, one is in the middle when nobody waits for it any more
            import pathlib, time
            path = pathlib.Path(path); (path/f'{name} begun').touch()
            try: time.sleep(60 if name == 'slow' else 0)
            finally: time.sleep(.5); (path/f'{name} ended').touch()
        monkeypatch.setattr(runner, 'do_job', job)
        jobs = runner.do_ray(tmp_path, dict(quick=(), slow=()), plan_of(e.run))
        assert next(jobs) == 'quick'
        while not (tmp_path/'slow begun').exists(): time.sleep(.01)
        jobs.close()
        assert (tmp_path/'slow ended').exists()
    finally: STRATEGIES.pop('turned', None); ray.shutdown()

def test_no_ray(monkeypatch, tmp_path):
    "Without Ray there is one sentence, and no folder."
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(PlasticityError, match=r"pip install 'plasticity_nb\[ray\]'"): PlasticityExperiment('tiny', output_dir=tmp_path/'out').run_experiment(executor='ray')
    assert not (tmp_path/'out').exists()

def flip(path, at):
    "One bit of a file."
    held = bytearray(path.read_bytes()); held[at] ^= 1; path.write_bytes(held)

def test_damaged_files(whole, unfinished):
    "Records and tensors that were cut off, lost a key or have one bit that is another are said and set aside, their jobs done again: the same bytes in the end."
    jobs = unfinished/'jobs'
    torn = jobs/'dense-0.json'; torn.write_bytes(torn.read_bytes()[:40])
    lost = jobs/'prune-random-0.3-1.json'; record = json.loads(lost.read_text()); del record['pruned']; lost.write_text(json.dumps(record))
    digit = jobs/'cell-random-0.3-0.json'; flip(digit, digit.read_bytes().index(b'"perplexity":')+14) # the second digit
    flip(jobs/'prune-taylor-0.3.safetensors', -5)
    with pytest.warns(UserWarning, match='set aside') as said: PlasticityExperiment.resume(unfinished, verbose=False)
    assert sorted(next(w for w in str(x.message).split() if '-0' in w) for x in said if 'set aside' in str(x.message)) == ['cell-random-0.3-0', 'dense-0', 'prune-random-0.3-1', 'prune-taylor-0.3']
    assert outcome(unfinished) == outcome(whole[0]) and len([f for f in jobs.iterdir() if '.json.damaged' in f.name]) == 4

def test_other_versions(whole, unfinished):
    "Jobs of two versions of torch are not mixed; a finished run is given as it stands."
    reconfigure(unfinished, torch='1.0')
    with pytest.raises(PlasticityError, match='was begun with torch 1.0'): PlasticityExperiment.resume(unfinished, verbose=False)
    shutil.copy(whole[0]/'results.json', unfinished)
    before = {f: f.stat().st_mtime_ns for f in unfinished.rglob('*')}
    assert PlasticityExperiment.resume(unfinished, verbose=False) == json.loads((unfinished/'results.json').read_text())
    assert {f: f.stat().st_mtime_ns for f in unfinished.rglob('*')} == before and outcome(unfinished) == outcome(whole[0])

def test_other_text_or_weights(whole, unfinished, tmp_path):
    "A run goes on only with the text and the weights it was begun with, wherever they lie by now."
    text = tmp_path/'LICENSE'; text.write_text(Path(SIZES['dataset']).read_text().replace('Copyright', 'Copyleft'))
    reconfigure(unfinished, dataset=str(text))
    with pytest.raises(PlasticityError, match='the texts of .*LICENSE are not those that the run was begun with'): PlasticityExperiment.resume(unfinished, verbose=False)
    shutil.copy(SIZES['dataset'], text)
    lm = load_lm('tiny', device='cpu'); lm.model.get_output_embeddings().weight.data[0, 0] += 1e-3
    for part in (lm.model, lm.tokenizer): part.save_pretrained(tmp_path/'tiny')
    reconfigure(unfinished, model=str(tmp_path/'tiny'))
    with pytest.raises(PlasticityError, match='the weights of .*tiny are not those that the run was begun with'): PlasticityExperiment.resume(unfinished, verbose=False)
    reconfigure(unfinished, model='tiny')
    PlasticityExperiment.resume(unfinished, verbose=False)
    assert outcome(unfinished) == outcome(whole[0])

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
       (dict(seeds=[1, 1]), 'name one twice'), (dict(fine_tuning_steps=0), 'steps 0'), (dict(plasticity_cycles='2'), "cycles '2'"), (dict(executor='abacus'), "no executor 'abacus'"),
       (dict(pruning_levels=None), 'None is no list of levels'), (dict(pruning_strategies=None), 'None is no list of strategies'), (dict(seeds=None), 'None is no list of seeds'), (dict(fine_tuning_steps=None), 'steps None'), (dict(refit='no'), "refit 'no' is neither")]

@pytest.mark.parametrize('asked, said', BAD)
def test_bad_input(asked, said, tmp_path):
    "One sentence, and nothing is written."
    with pytest.raises(PlasticityError, match=said): PlasticityExperiment('tiny', output_dir=tmp_path/'out', verbose=False, **SIZES).run_experiment(**asked)
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('made, said', [(dict(model_name='./nowhere'), 'there is no folder'), (dict(dataset='nothing.txt'), 'no file or folder'), (dict(block_len=9999), 'longer than the 512 positions'), (dict(device='abacus'), 'abacus'),
                                        (dict(threads=0), 'threads 0'), (dict(blocklen=3), "no setting 'blocklen': choose from block_len"), (dict(steps=3), 'or give it to run_experiment'), (dict(output_dir='/proc/here'), 'cannot be written')])
def test_bad_settings(made, said, tmp_path):
    with pytest.raises(PlasticityError, match=said): PlasticityExperiment(**dict(output_dir=tmp_path/'out', verbose=False) | SIZES | made).run_experiment()
    assert not (tmp_path/'out').exists()
