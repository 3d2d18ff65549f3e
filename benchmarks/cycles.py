"""Cycles of prune, measure, grow and learn with several seeds, beside their controls: does pruning help, or training?

    python benchmarks/cycles.py
    python benchmarks/cycles.py --model_name smollm2-135m --steps 100 --batch_size 16 --block_len 256 --learning_rate 3e-5 --device cuda

Adds to benchmarks/cycles.json after every seed and prints a table: mean over seeds with a
95 % confidence interval (Student's t)."""
import json, statistics as st
from pathlib import Path

from fastcore.script import call_parse

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # two-sided, by number of seeds
KEEP = 'model text block_len tokenizer eval_blocks steps batch_size learning_rate grown_rate device python torch transformers'.split()


def interval(xs):
    "Mean and half width of its 95 % confidence interval."
    return st.mean(xs), T95[len(xs)] * st.stdev(xs) / len(xs) ** .5


def table(study):
    "Lines of a Markdown table, from one entry of cycles.json."
    seeds = study['seeds']
    out = [f"{study['model']} on {study['text']}: perplexity over {study['eval_blocks']} blocks of {study['block_len']} tokens, {len(seeds)} seeds, "
           f"{study['steps']} steps of {study['batch_size']} texts per cycle, mean ± 95 % confidence interval", '',
           '| cycle | heads | pruned | grown | **learned** | random heads | dense | minus dense | minus random |',
           '|---|---|---|---|---|---|---|---|---|',
           f"| start | {seeds[0]['baseline']['active_heads']} | | | {seeds[0]['baseline']['perplexity']:.2f} | | | | |"]
    for c in range(len(seeds[0]['cycles'])):
        rows = [s['cycles'][c] for s in seeds]
        cell = lambda xs: '{:.2f} ±\u202f{:.2f}'.format(*interval(xs))
        p = lambda k: [r[k] for r in rows]
        out.append(f"| {c+1} | {'/'.join(map(str, sorted(set(p('heads')))))} | {cell(p('prune'))} | {cell(p('grow'))} | **{cell(p('learn'))}** | {cell(p('random'))} | {cell(p('dense'))} | "
                   f"{cell([r['learn']-r['dense'] for r in rows])} | {cell([r['learn']-r['random'] for r in rows])} |")
    return '\n'.join(out)


def add(path, study):
    "Put the seeds of a study into a file of studies, beside those measured with the same settings."
    path = Path(path)
    studies = json.loads(path.read_text()) if path.exists() else []
    same = [s for s in studies if all(s[k] == v for k, v in study.items() if k not in ('seeds', 'command'))]
    seeds = {s['seed']: s for s in [*(same[0]['seeds'] if same else []), *study['seeds']]}
    whole = dict(study, seeds=[seeds[i] for i in sorted(seeds)])
    path.write_text(json.dumps([*(s for s in studies if s not in same), whole], indent=1) + '\n')
    return whole


def study_of(r, seconds, command):
    "A study of one seed, from the results of a run."
    cycles = [dict(heads=c['phases']['learn']['active_heads'], degeneration=c['phases']['learn']['degeneration'], degeneration_dense=c['dense']['degeneration'],
                   dense=c['dense']['perplexity'], random=c['random']['perplexity'], **{k: c['phases'][k]['perplexity'] for k in ('prune', 'grow', 'learn')}) for c in r['cycles']]
    c = r['cycles'][0]
    return {k: r[k] for k in KEEP} | dict(pruning_level=c['pruning_level'], growth_ratio=c['growth_ratio'], command=command,
                                          seeds=[dict(seed=r['seed'], seconds=seconds, baseline=r['baseline'], cycles=cycles)])


@call_parse
def main(model_name: str = 'tiny',  # as in plasticity_run
         n_seeds: int = 3,  # 2 to 10: an interval needs at least two
         first_seed: int = 0,
         dataset: str = 'python-docs',  # as in plasticity_run
         max_cycles: int = 3,  # cycles in each run
         pruning_level: float = .2,  # share of the open heads that a cycle closes
         growth_ratio: float = .3,  # share of the closed heads that may come back
         steps: int = 30,  # training steps per cycle
         batch_size: int = 2,  # texts per step
         learning_rate: float = 1e-4,  # of AdamW
         block_len: int = 256,  # tokens in a text
         eval_blocks: int = 24,  # held-out texts
         device: str = None,  # default: the GPU if there is one
         output: str = 'benchmarks/cycles.json',  # what is added to
         output_dir: str = None):  # of the run folders
    "Run the same cycles with several seeds and print the table."
    import sys
    from plasticity_nb.cycle.system import AdaptivePlasticitySystem
    for seed in range(first_seed, first_seed+n_seeds):
        system = AdaptivePlasticitySystem(model_name, dataset, output_dir, device, sys.stderr.isatty(), block_len=block_len, steps=steps, batch_size=batch_size,
                                          learning_rate=learning_rate, eval_blocks=eval_blocks, seed=seed, quality_bound=None)
        r = system.run_adaptive_optimization(max_cycles, pruning_level, growth_ratio)
        seconds = system.run.events('done')[-1]['seconds']
        study = add(output, study_of(r, seconds, ' '.join(['python', *sys.argv])))
        print(f"seed {seed}: {r['baseline']['perplexity']:.2f} -> {r['final']['perplexity']:.2f} (dense {r['dense']['perplexity']:.2f}, random {r['random']['perplexity']:.2f}), {seconds:.0f} s", flush=True)
    if len(study['seeds']) in T95: print('\n' + table(study))
