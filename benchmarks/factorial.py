"""The full factorial experiment on tiny: 4 strategies x 3 levels x 3 seeds x 2 cycles of 30 steps, on two Ray workers. How long does it take, and what does it say?

    python benchmarks/factorial.py                           # 13 minutes on 2 cores that do nothing else; writes factorial.json

The clock starts before the model is loaded and stops when the report is written."""
import json, os, platform, tempfile, time
from pathlib import Path

from fastcore.script import call_parse


@call_parse
def main(output:str=str(Path(__file__).parent/'factorial.json'), # where the result goes
         output_dir:str=None): # where the run folder goes; default: a temporary one
    from plasticity_nb.experiment.runner import PlasticityExperiment
    strategies, levels = ['entropy', 'magnitude', 'taylor', 'random'], [.1, .3, .5]
    t = time.perf_counter()
    e = PlasticityExperiment('tiny', output_dir=output_dir or tempfile.mkdtemp(), device='cpu')
    report = e.run_experiment(strategies, levels, 30, 2, executor='ray')
    seconds = time.perf_counter() - t
    print(report)
    Path(output).write_text(json.dumps(summary(e.run.load_json('results.json'), seconds), indent=1) + '\n')


def summary(r, seconds):
    "What is kept of a run."
    keep = ('perplexity', 'heads', 'against_dense', 'against_random')
    rows = [{k: x[k] for k in ('strategy', 'level', 'cycle')} | {k: x[k] and {n: v if v is None else round(v, 5) for n, v in x[k].items()} for k in keep} for x in r['rows']]
    about = {k: r[k] for k in ('model', 'text', 'strategies', 'levels', 'seeds', 'cycles', 'steps', 'block_len', 'batch_size', 'eval_blocks', 'gate_lr', 'version', 'torch', 'transformers', 'python')}
    return dict(seconds=round(seconds, 1), workers=2, cores=os.cpu_count(), machine=platform.machine(), **about, tokens={k: r['tokens'][k] for k in ('shared', 'plain', 'ratio')}, rows=rows)
