"""Does choosing strategy, level and growth anew in every cycle beat any single choice, and does a memory help at the start?

    python benchmarks/adaptive.py --list_only
    python benchmarks/adaptive.py --part 0/8                   # every eighth run, from the first; several processes may share a machine
    python benchmarks/adaptive.py --plan memory --part 0/8     # after the others: with the outcomes of the adaptive runs on the other text
    python benchmarks/adaptive.py --table_only

Every run has the same model, text, seed, number of cycles and training tokens. A fixed run keeps its strategy, level and growth ratio; the best of
all fixed runs is known only in hindsight (by the mean over seeds) and is the hardest rival. What a user without the system would do is one
strategy at the default level. The score is that of the best cycle; score by cycle is the best so far. Adds a line per run to benchmarks/adaptive.jsonl
and does not do again what stands there."""
import json, statistics as st, tempfile, time, traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from fastcore.script import call_parse

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, two-sided, by number of seeds
STRATEGIES = 'irreplaceable', 'taylor', 'output_norm', 'random'
LEVELS, GROWTH = (.05, .1, .2, .3), (0., .3)
DEFAULT = .2, .3  # level and growth ratio of a run that asks for nothing


@dataclass(frozen=True)
class Job:
    "A run."
    dataset: str
    seed: int
    strategy: str  # or 'adaptive'
    level: float = DEFAULT[0]
    growth: float = DEFAULT[1]
    memory: bool = False

    @property
    def name(self):
        if self.strategy == 'adaptive': return f"adaptive{' with memory' if self.memory else ''}, up to {self.level:.0%}"
        return f'{self.strategy}, {self.level:.0%}, growth {self.growth:.0%}'


def jobs_of(plan, datasets, seeds):
    "Runs: adaptive ones first, then those at the default level, learning alone, and every level and growth of the two strategies that an adaptive run chooses from."
    free = [('adaptive', *DEFAULT), ('adaptive', .3, .3)]  # up to the level that is asked for
    if plan == 'memory': return [Job(d, s, *a, memory=True) for a in free for s in seeds for d in datasets]
    arms = [*free, *((s, *DEFAULT) for s in STRATEGIES), ('irreplaceable', 0., 0.), *((s, l, g) for s in STRATEGIES[:2] for l in LEVELS for g in GROWTH), *((s, .1, 0.) for s in STRATEGIES[2:])]
    return [Job(d, s, *a) for a in dict.fromkeys(arms) for s in seeds for d in datasets]


def remember(path, rows):
    "A memory file with the outcomes of some runs."
    from plasticity_nb.cycle.memory import StrategyMemory, outcome
    memory = StrategyMemory(path)
    for r in rows:
        before = r['baseline']
        for c in r['cycles']:
            if c['gain'] is None: continue
            after = dict(perplexity=c['perplexity'], degeneration=c['degeneration'], active_heads=c['heads'])
            memory.add(c['strategy'], c['level'], c['growth'], outcome(after, before, r['baseline']['active_heads']), open_share=before['active_heads'] / r['baseline']['active_heads'],
                       accepted=c['accepted'], text=r['text'], run=r['name'], **r['about'])
            if c['accepted']: before = after
    return memory


def do(job, options, earlier):
    "One run; what is kept of it."
    from plasticity_nb.cycle.memory import BanditConfig
    from plasticity_nb.cycle.system import AdaptivePlasticitySystem, default_bandit
    with tempfile.TemporaryDirectory() as folder:
        adaptive, memory = job.strategy == 'adaptive', None
        if job.memory:
            rows = [r for r in earlier if r['strategy'] == 'adaptive' and not r['memory'] and r['dataset'] != job.dataset]
            if not rows: raise SystemExit('there are no adaptive runs on another text yet: do the other plan first')
            memory = remember(Path(folder) / 'memory.sqlite', rows)
        bandit = BanditConfig(**asdict(default_bandit(job.level, job.growth)) | options['bandit']) if adaptive else None
        began = time.perf_counter()
        system = AdaptivePlasticitySystem(options['model'], job.dataset, folder, options['device'], False, steps=options['steps'], strategy=job.strategy, bandit=bandit, memory=memory,
                                          quality_bound=options['quality_bound'], refit=options['refit'], samples=options['samples'], controls=False, seed=job.seed)
        r = system.run_adaptive_optimization(options['cycles'], job.level, job.growth)
        return dict(text=system.dataset, about={k: system.who[k] for k in ('family', 'parameters', 'learning')}, baseline={k: r['baseline'][k] for k in ('perplexity', 'degeneration', 'active_heads')}, best={k: r['best'][k] for k in ('cycle', 'score', 'perplexity', 'active_heads')},
                    cycles=[dict(strategy=c['strategy'], level=c['pruning_level'], growth=c['growth_ratio'], accepted=c['accepted'], score=c['score'], gain=c['gain'],
                                 perplexity=c['phases']['learn']['perplexity'], degeneration=c['phases']['learn']['degeneration'], heads=c['phases']['learn']['active_heads']) for c in r['cycles']], seconds=round(time.perf_counter() - began, 1))


def mean(xs, form='.3f'):
    "Mean, and half the width of its 95 % confidence interval."
    return f'{st.mean(xs):{form}}' + (f' ± {T95[len(xs)] * st.stdev(xs) / len(xs) ** .5:{form}}' if len(xs) in T95 else '')


def so_far(r):
    "Best score after each cycle; the untouched model's is 0."
    out, best = [], 0.
    for c in r['cycles']:
        if c['accepted'] and c['score'] is not None: best = max(best, c['score'])
        out.append(best)
    return out


def tables(rows):
    "Lines of Markdown tables, one for each text and set of options."
    groups, out = {}, []
    for r in rows: groups.setdefault((r['dataset'], json.dumps(r['options'])), []).append(r)
    for (dataset, options), rs in groups.items():
        o, by = json.loads(options), {}
        for r in rs: by.setdefault(r['name'], {})[r['seed']] = r
        most = max(map(len, by.values()))
        by = {n: v for n, v in by.items() if len(v) == most}
        score = lambda n: [by[n][s]['best']['score'] for s in sorted(by[n])]
        fixed, own = [n for n in by if not n.startswith('adaptive')], Job('', 0, 'adaptive').name
        best = max(fixed, key=lambda n: st.mean(score(n)), default=None)
        out += ['', f"{o['model']} on {rs[0]['text']}, {o['cycles']} cycles of {o['steps']} steps, {most} seeds; best fixed run in hindsight: {best}", '',
                f'| run | score | {own} minus this, same seed | after cycle 1 | after 2 | after 4 | perplexity | heads |', '|---|---:|---:|---:|---:|---:|---:|---:|']
        for n in sorted(by, key=lambda n: -st.mean(score(n))):
            seeds, at = sorted(by[n]), lambda i: mean([so_far(by[n][s])[min(i, o['cycles']) - 1] for s in by[n]])
            less = mean([by[own][s]['best']['score'] - by[n][s]['best']['score'] for s in seeds]) if own in by and n != own and seeds == sorted(by[own]) else ''
            out.append(f"| {n} | {mean(score(n))} | {less} | {at(1)} | {at(2)} | {at(4)} | {st.mean(r['best']['perplexity'] for r in by[n].values()):.2f} | {st.mean(r['best']['active_heads'] for r in by[n].values()):.1f} |")
        out += ['', *(f'* {n} over the best fixed run: {st.mean(score(n)) / st.mean(score(best)):.2f} × its score' for n in by if best and n.startswith('adaptive'))]
    return '\n'.join(out[1:])


def explained(rows, state):
    "Share of the variance of a cycle's gain that a ridge regression explains in runs with other seeds, with or without the state; and the spread of the rest."
    import numpy as np
    x, y, seed = [], [], []
    for r in rows:
        n = share = r['baseline']['active_heads']
        for c in r['cycles']:
            one = [float(c['strategy'] == s) for s in STRATEGIES]
            if c['gain'] is not None: x.append([*one, *(3 * c['level'] * o for o in one), c['growth'], *([9 * c['level'] * (1 - share / n)] if state else [])]), y.append(c['gain']), seed.append(r['seed'])
            if c['accepted']: share = c['heads']
    x, y, seed, rest = np.array(x), np.array(y), np.array(seed), 0.
    for s in set(seed.tolist()):
        a, b = x[seed != s], x[seed == s]
        rest += ((y[seed == s] - b @ np.linalg.solve(a.T @ a + .25 * np.eye(a.shape[1]), a.T @ y[seed != s])) ** 2).sum()
    return 1 - rest / ((y - y.mean()) ** 2).sum(), (rest / len(y)) ** .5, len(y)


@call_parse
def main(plan: str = 'fixed',  # 'fixed': adaptive and fixed runs; 'memory': adaptive runs that remember those on other texts
         model_name: str = 'tiny',
         datasets: str = 'python-docs,shakespeare',  # with commas between
         seeds: str = '0,1,2,3,4',
         cycles: int = 8,
         steps: int = 30,  # of training in a cycle
         quality_bound: float = 1.25,
         samples: int = 128,  # held-out prompts whose continuations are judged; 16 make a score too noisy to compare cycles by
         refit: bool = False,  # least squares after pruning, in all runs
         bandit: str = '{}',  # more of `BanditConfig`, as JSON
         only: str = None,  # runs whose line of --list_only holds this
         part: str = '0/1',  # i/n: every n-th run from the i-th
         device: str = None,  # default: the GPU if there is one
         seconds: float = float('inf'),  # no run begins after so many
         done: str = None,  # other files with lines that need not be done again, with commas between
         list_only: bool = False,  # print the runs
         table_only: bool = False,  # print the tables
         output: str = 'benchmarks/adaptive.jsonl'):  # what is added to
    "Do the runs of a plan, or print what they gave."
    files = [*(done.split(',') if done else []), output]
    read = lambda: [json.loads(l) for f in files if Path(f).exists() for l in Path(f).read_text().splitlines() if l.strip()]
    if table_only:
        rows = list({r['key']: r for r in read()}.values())
        print(tables(rows))
        for d in sorted({r['dataset'] for r in rows}):
            for state in (False, True): print('{}, {}: {:.0%} of the variance of the gain explained, rest {:.3f}, {} cycles'.format(d, 'with the state' if state else 'without', *explained([r for r in rows if r['dataset'] == d], state)))
        return
    jobs = [j for j in jobs_of(plan, datasets.split(','), [int(s) for s in seeds.split(',')]) if not only or only in repr(j)]
    if list_only: return print('\n'.join(map(repr, jobs)))
    own = json.loads(bandit)
    options = dict(model=model_name, cycles=cycles, steps=steps, quality_bound=quality_bound, refit=refit, samples=samples)
    (i, n), started, failed = map(int, part.split('/')), time.perf_counter(), []
    for job in jobs[i::n]:
        facts = options | (dict(bandit=own) if job.strategy == 'adaptive' else {})
        key, earlier = json.dumps([asdict(job), facts]), read()
        if key in {r['key'] for r in earlier}: continue
        if time.perf_counter() - started > seconds: break
        try: found = do(job, options | dict(bandit=own, device=device), earlier)
        except Exception:  # said, and the other runs are done; the exit status tells
            traceback.print_exc()
            failed.append(job)
            continue
        with open(output, 'a') as f: f.write(json.dumps(dict(asdict(job), name=job.name, options=options, bandit=own if job.strategy == 'adaptive' else None, **found, key=key)) + '\n')
        print(f"{time.perf_counter() - started:5.0f} s: {job.dataset} {job.name} seed {job.seed}: best {found['best']['score']:.4f} in cycle {found['best']['cycle']}; "
              + ' '.join('-' if c['score'] is None else f"{c['score']:.3f}{'' if c['accepted'] else 'x'}" for c in found['cycles']) + f"; {found['seconds']} s", flush=True)
    if failed: raise SystemExit(f'{len(failed)} runs failed: {failed}')
