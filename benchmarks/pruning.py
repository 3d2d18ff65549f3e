"""How much a model loses when heads go, without any training: every pruning strategy, with and without a least-squares refit.

    python benchmarks/pruning.py                                        # tiny, all strategies and the rank correlations
    python benchmarks/pruning.py --model_name smollm2-135m
    python benchmarks/pruning.py --model_name smollm2-135m --only taylor,random --truth_blocks 0
    python benchmarks/pruning.py --model_name smollm2-135m --device cuda --block_len 512 --eval_blocks 48
    python benchmarks/pruning.py --model_name smollm2-135m --only irreplaceable_iterative --truth_blocks 0 --output once.json  # what it takes
    python benchmarks/pruning.py --table_only                           # print what was measured

Heads are chosen and projections are refitted on the training half of a text, perplexity is measured on the held-out half, and given as a
multiple of the dense model's. A strategy that works in steps chooses for the highest level; the first part of its list serves for the lower
ones. `+refit` behind the name of a strategy: the model is refitted between the steps too. Seconds are those of choosing and of the refit for
the highest level: of the processor, on a GPU of the clock; the file has both. Rank correlations (Spearman) are with the true rise in loss on
closing single heads, on the first calibration texts. Random heads are the mean of three draws. Adds to benchmarks/pruning.json after
every measurement, beside what was measured with the same settings, and does not measure that again."""
import json, re, time
from pathlib import Path

from fastcore.script import call_parse

LEVELS = .1, .3, .5


def settings(lm, dataset, train, held, threads, ridge):
    "What must be equal for two measurements to stand in one table."
    import torch, transformers
    return dict(model=lm.name, dataset=dataset, calibration=repr(train), held_out=repr(held), ridge=ridge, threads=threads, torch=torch.__version__, transformers=transformers.__version__,
                device=torch.cuda.get_device_name(lm.device) if lm.device.type == 'cuda' else None)


def keep(path, facts, **found):
    "Add to the study with the same settings in a file of studies; strategies join those that are there."
    path = Path(path)
    studies = json.loads(path.read_text()) if path.exists() else []
    same = [s for s in studies if all(s.get(k) == v for k, v in facts.items())]
    study = same[0] if same else dict(facts, strategies={}, correlation={})
    for k, v in found.items():
        if isinstance(v, dict): study[k] = study.get(k, {}) | v
        else: study[k] = v
    text = json.dumps([*(s for s in studies if s not in same), study], indent=1)
    path.write_text(re.sub(r'\[\s+([^\s\[\]]+,)\s+([^\s\[\]]+)\s+\]', r'[\1 \2]', text) + '\n')  # pairs on one line
    return study


def clock():
    "Wall and processor seconds; what a GPU was asked to do is done."
    import numpy as np, torch
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def measure(inst, name, blocks, train, held, dense, ridge, seed, steps, known, save):
    "Perplexity ratios of one strategy at all levels; what is `known` already is not done again."
    from plasticity_nb.cycle.prune import choose
    from plasticity_nb.cycle.refit import refit
    from plasticity_nb.metrics import evaluate
    repairs, found = None, known or dict(levels={}, seed=seed)
    def mend(inst):
        nonlocal repairs
        repairs = refit(inst, train, ridge, repairs)
    if 'order' not in found:
        t = clock()
        order = choose(inst, name.removesuffix('+refit'), max(LEVELS), blocks, seed=seed, steps=steps, between=mend if name.endswith('+refit') else None)
        found |= dict(order=[list(h) for h in order], choose=list(clock() - t))
        if repairs: repairs.restore()
        save(found)
    for level in sorted(LEVELS, reverse=True):
        if str(level) in found['levels']: continue
        with inst.closed([tuple(h) for h in found['order'][:round(level * int((inst.gates != 0).sum()))]]):
            plain = evaluate(inst, held).perplexity
            t = clock()
            done = refit(inst, train, ridge)
            took, mended = list(clock() - t), evaluate(inst, held).perplexity
            done.restore()
        found['levels'][str(level)] = dict(plain=plain / dense, refitted=mended / dense, refit=took)
        save(found)
    return found


def table(study):
    "Lines of a Markdown table, from one study; draws of random heads are averaged."
    mean, rows = lambda xs: sum(xs) / len(xs), {}
    for name, s in study['strategies'].items():
        if s['levels']: rows.setdefault(name.split(':')[0], []).append(s)
    which = 0 if study.get('device') else 1  # of the clock, of the processor
    unit = f"seconds on {study['device']}" if which == 0 else 'processor seconds'
    out = [f"{study['model']}: perplexity over the dense model's {study['dense']:.2f}; held out: {study['held_out']}; calibration: {study['calibration']}, {study['choose_blocks']} of them for choosing", '',
           '| strategy | ' + ' | '.join(f'{l:.0%} | refitted' for l in LEVELS) + f' | {unit} | rank correlation |', '|---|' + '---:|' * (2 * len(LEVELS) + 2)]
    at = lambda r, l, k: mean([s['levels'][str(l)][k] for s in r]) if all(str(l) in s['levels'] for s in r) else None
    cell = lambda x, form: '' if x is None else f'{x:{form}}'
    for name, r in sorted(rows.items(), key=lambda x: at(x[1], max(LEVELS), 'refitted') or 1e9):
        spent = [t for s in r if str(max(LEVELS)) in s['levels'] for t in (s['choose'][which], s['levels'][str(max(LEVELS))]['refit'][which])]
        cells = [cell(at(r, l, k), '.3f') for l in LEVELS for k in ('plain', 'refitted')]
        cells += ['' if None in spent or not spent else f'{sum(spent) / len(r):.0f}', cell(study['correlation'].get(name.removesuffix('+refit')), '.2f')]
        out.append(f"| {name}{f', {len(r)} of 3 draws' if name == 'random' else ''} | " + ' | '.join(cells) + ' |')
    return '\n'.join(out)


@call_parse
def main(model_name: str = 'tiny',  # name, folder or hub id
         dataset: str = 'python-docs',  # see load_text
         only: str = None,  # names of strategies with commas between; default: all, and the best with a refit between its steps
         block_len: int = 256,  # tokens in a text
         calibration_blocks: int = 32,  # training texts for the refit
         choose_blocks: int = 8,  # of them, for choosing heads
         eval_blocks: int = 16,  # held-out texts
         truth_blocks: int = 4,  # calibration texts for the true loss of closing single heads; 0: no rank correlations
         truth_heads: int = None,  # closed one by one, evenly spread over the layers; default: all
         ridge: float = None,  # of the refit; default: chosen on held-out tokens
         steps: int = None,  # in which heads are chosen; default: each strategy's own
         seed: int = 0,  # of random choices
         device: str = 'cpu',  # or 'cuda'
         table_only: bool = False,  # print what the file holds
         output: str = 'benchmarks/pruning.json'):  # what is added to
    "Prune by every strategy and print the tables."
    if table_only: return print('\n\n'.join(table(s) for s in json.loads(Path(output).read_text())))
    import torch
    from plasticity_nb.attention import instrument
    from plasticity_nb.cycle.prune import STRATEGIES, importance, open_heads, rank_correlation, removal_losses
    from plasticity_nb.metrics import evaluate
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    lm, text = load_lm(model_name, dtype='float32', device=device), load_text(dataset)
    train, held = (token_blocks(text.split(half), lm, block_len, n) for half, n in (('train', calibration_blocks), ('eval', eval_blocks)))
    blocks, inst = train.ids[torch.arange(choose_blocks) * len(train) // choose_blocks], instrument(lm)
    facts = settings(lm, dataset, train, held, torch.get_num_threads(), ridge) | dict(choose_blocks=choose_blocks, steps=steps)
    dense = evaluate(lm, held).perplexity
    study = keep(output, facts, dense=dense)
    names = only.split(',') if only else [*STRATEGIES, 'irreplaceable_iterative+refit']
    for name in names:
        for i in range(seed, seed + 3) if name == 'random' else [seed]:
            key = f'{name}:{i}' if name == 'random' else name
            def save(found, key=key): return keep(output, facts, strategies={key: found})
            found = measure(inst, name, blocks, train, held, dense, ridge, i, steps, study['strategies'].get(key), save)
            study = save(found)
            print(key, {l: (round(r['plain'], 3), round(r['refitted'], 3)) for l, r in found['levels'].items()}, "seconds by the clock (of the processor): choosing {:.0f} ({:.0f}), refit {}".format(*found['choose'], ', '.join('{}: {:.0f} ({:.0f})'.format(l, *r['refit']) for l, r in found['levels'].items())), flush=True)
    if truth_blocks:
        t = time.perf_counter()
        heads = open_heads(inst).tolist()
        truth = removal_losses(inst, blocks[:truth_blocks], [tuple(heads[i*len(heads)//n]) for n in [min(truth_heads or len(heads), len(heads))] for i in range(n)])
        found = {n: rank_correlation(importance(inst, n, blocks, seed), truth) for n in (n.removesuffix('+refit') for n in names)}
        study = keep(output, facts, correlation=found, truth=truth.tolist(), truth_blocks=truth_blocks, truth_heads=int(truth.isfinite().sum()), truth_seconds=time.perf_counter() - t)
    after = evaluate(lm, held).perplexity
    assert after == dense or lm.device.type == 'cuda' and abs(after - dense) < 1e-5 * dense, f'the model is not what it was: {after} {dense}'
    print('\n' + table(study))
