"Runs that are killed at any moment go on, and end with the same bytes as a run that nobody touched."
import os, random, signal, subprocess, sys, time, warnings
from pathlib import Path
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork, to begin many processes without importing torch in each')
KILLS = 20
OPTIONS = dict(model_name='tiny', dataset='python-docs', device='cpu', block_len=64, eval_blocks=2, samples=1, calibration_blocks=2, steps=2, batch_size=1, verbose=False,
               strategy='adaptive', refit=True, unit='both', quality_bound=1.2, compact=True)

def begin(folder):
    from plasticity_nb.cycle.system import AdaptivePlasticitySystem
    AdaptivePlasticitySystem(output_dir=folder, memory=folder/'m.sqlite', **OPTIONS).run_adaptive_optimization(2, .3, .4)

def go_on(folder):
    from plasticity_nb.cycle.system import AdaptivePlasticitySystem
    AdaptivePlasticitySystem.resume(next(folder.glob('run_*')), verbose=False)

def in_process(f, *args, kill_after=600, kill_when=lambda: False):
    "Call `f` in a process of its own; kill it after so many seconds, or when it is so far. Gives its exit status; None if it was killed."
    if not (pid := os.fork()):
        status = 1
        try: warnings.simplefilter('ignore'); f(*args); status = 0
        finally: os._exit(status)
    end = time.monotonic() + kill_after
    while time.monotonic() < end and not kill_when():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)

def results(folder): return (next(folder.glob('run_*'))/'results.json').read_bytes()

def killed_at_random(tmp_path):
    "Twenty kills at random moments, spread over as many lives as it takes; each run that comes to its end is compared."
    import plasticity_nb.cycle.system # once, for all processes
    from plasticity_nb.cycle.memory import StrategyMemory
    (whole := tmp_path/'whole').mkdir()
    start = time.monotonic(); assert in_process(begin, whole) == 0; took = time.monotonic() - start
    chance, kills, ended = random.Random(0), 0, 0
    while kills < KILLS or not ended:
        (folder := tmp_path/f'run{ended}').mkdir()
        status = None
        while status is None:
            f = go_on if list(folder.glob('run_*')) else begin
            status = in_process(f, folder, kill_after=chance.uniform(.05, .6)*took if kills < KILLS else 600)
            kills += status is None
        assert status == 0
        assert results(folder) == results(whole)
        assert len(StrategyMemory(folder/'m.sqlite')) == len(StrategyMemory(whole/'m.sqlite')) == 2
        assert sorted(p.name for p in next(folder.glob('run_*/checkpoints')).iterdir()) == sorted(p.name for p in next(whole.glob('run_*/checkpoints')).iterdir())
        ended += 1
    print(f'{kills} kills, {ended} runs')

def second_process_is_refused(tmp_path):
    "While a run goes on, nobody else may go on with it."
    from plasticity_nb.cycle.system import AdaptivePlasticitySystem
    from plasticity_nb.errors import PlasticityError
    from plasticity_nb.runs import Run
    assert in_process(begin, tmp_path, kill_when=lambda: any(tmp_path.glob('run_*/checkpoints/cycle_001'))) is None
    run = Run.open(next(tmp_path.glob('run_*')))
    with run.hold():
        with pytest.raises(PlasticityError, match='another process is at work'): AdaptivePlasticitySystem.resume(run.path, verbose=False)
    assert not run.events('failed') # being refused is no failure of the run

@pytest.mark.parametrize('what', ['killed_at_random', 'second_process_is_refused'])
def test_resume(what, tmp_path):
    "In a process that has not computed anything yet: threads of torch do not survive a fork."
    done = subprocess.run([sys.executable, __file__, what, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

if __name__ == '__main__': globals()[sys.argv[1]](Path(sys.argv[2]))
