"""Where every number is: for each benchmark its question, what was asked for, what came out, the command and the page, read from the files beside this one.

    python benchmarks/overview.py

A script that nobody has written a line for yet stands in the table too, with the first sentence and the first command of its docstring."""
import ast, json, re
from pathlib import Path

HERE = Path(__file__).parent


def saved(name):
    "What stands in a file beside this one."
    text = (HERE/name).read_text(encoding='utf-8')
    return [json.loads(l) for l in text.splitlines() if l.strip()] if name.endswith('l') else json.loads(text)


def files():
    "The files by the benchmark they belong to: the longest name that theirs begins with."
    stems, out = {*LINES, *(f.stem for f in HERE.glob('*.py'))}, {}
    for f in sorted(HERE.glob('*.json*')):
        of = max((s for s in stems if f.stem == s or f.stem.startswith(f'{s}_')), key=len, default=f.stem)
        out.setdefault(of, []).append(f.name)
    return out


def said(stem):
    "First sentence and first command of a script's docstring."
    doc = ast.get_docstring(ast.parse((HERE/f'{stem}.py').read_text(encoding='utf-8')))
    return re.split(r'(?<=[.?:])\s', doc, maxsplit=1)[0].strip(' .:'), next(re.finditer(r'^ +(python .*?)(?: {2,}.*)?$', doc, re.M))[1]


def cycles():
    from cycles import interval
    end = lambda s: interval([x['cycles'][-1]['learn'] - x['cycles'][-1]['dense'] for x in s['seeds']])
    return '; '.join('{}: minus dense {:+.2f} ± {:.2f}'.format(s['model'], *end(s)) for s in saved('cycles.json'))


def learning():
    import math, statistics as st
    rows, out = saved('learning.jsonl'), []
    for text, recipe in dict(shakespeare='cosine6e-4', **{'python-docs': 'cosine1e-4+steps=40'}).items():
        of = lambda s, level: {r['seed']: r['curve'][-1][1]['report'] for r in rows if (r['dataset'], r['recipe'], r['strategy'], r['level']) == (text, recipe, s, level)}
        dense, cut = of('dense', 0.), of('irreplaceable_iterative', .3)
        out.append(f'{text}: {st.mean(math.exp(cut[s] - dense[s]) for s in cut):.2f} × dense')
    return '30 % of the heads gone, ' + '; '.join(out)


def adaptive():
    from adaptive import tables
    found = re.findall(r'\* (adaptive.*) over the best fixed run: ([\d.]+)', tables(saved('adaptive.jsonl')))
    span = lambda memory: ' to '.join(f(x for n, x in found if ('memory' in n) == memory) for f in (min, max))
    return f'{span(False)} × its score, with a memory {span(True)} ×'


def factorial():
    f = saved('factorial.json')
    return f"{f['tokens']['ratio']:.1f} times fewer, {f['seconds']/60:.1f} minutes on {f['cores']} cores"


def pruning():
    s = next(s for s in saved('pruning.json') if s['model'] == 'smollm2-135m')
    at = {k: v['levels']['0.5']['refitted'] for k, v in s['strategies'].items() if '0.5' in v['levels']}
    lot = [v for k, v in at.items() if k.startswith('random')]
    best = min(at, key=at.get)
    return f"{s['model']}, half of the heads closed, refitted: {at[best]:.2f} × dense ({best}), random heads {sum(lot)/len(lot):,.2f} ×"


def ridge():
    r = saved('ridge.json')
    x = max((x for x in r['rows'] if (x['strategy'], x['level']) == ('irreplaceable_iterative', .5)), key=lambda x: x['tokens'])
    fixed = [(p, w) for p, w in zip(x['ratios'], r['ridges']) if w is not None]
    return f"half of the heads closed: {x['ratios'][r['ridges'].index(None)]:.2f} × dense with the default, {min(fixed)[0]:.2f} × with the best fixed ridge, {min(fixed)[1]:g}"


def compact():
    c = saved('compact.json')
    r, w = c['rows']['half of the heads'], c['rows']['whole model']
    cut = sum(x.get('heads', '').startswith('cut') for x in c['architectures'].values())
    return f"half of the heads: {r['speedup']:.2f} × as fast (FLOPs allow {r['ceiling']:.2f}), {r['kv_bytes']/w['kv_bytes']:.2f} × the cache; {cut} of {len(c['architectures'])} architectures can lose heads"


def rcg():
    import rcg as study
    own = lambda q: study.summary(study.saved('report'), study.saved('outside'), q, resamples=2).loc['RCG']
    return '; '.join(f"{name}: rep-4 {r['rep4']:.3f}, perplexity +{r['rise']:.1f} %" for name, r in (('dense', own(None)), ('NF4', own('nf4'))))


def rcg_cost():
    w = saved('rcg_cost.json')['ways']
    return f"watched {w['watched']['ratio']:.2f} × the plain loop, repaired {w['repaired']['ratio']:.2f} ×, the plain loop again {w['again']['ratio']:.2f} ×; other runs came to more, see there"


def widgets():
    w = saved('widgets.json')
    return f"{w['drawing']['ms']:.0f} ms a drawing; a text takes {w['texts']['ways']['monitor']['ratio']:.2f} × the time (control {w['texts']['ways']['again']['ratio']:.2f})"


def speed():
    r = saved('speed.json')['rows']
    return f"gates {r['gates']['ratio']:.2f} ×, exact entropy {r['entropy']['ratio']:.2f} ×, eager weights {r['eager']['ratio']:.2f} × (control {r['control']['ratio']:.2f})"


def architectures():
    a = saved('architectures.json')
    return f"{a['hold']} of {a['of']}"


def transfers():
    t = saved('transfers.json')
    nf4 = [s for k, s in t['storms'].items() if k.startswith('NF4')]
    return (f"NF4: worst pathway off by {max(s['worst_pathway'] for s in nf4):.0e} of its weight, {sum(s['bytes_changed_outside'] for s in nf4)} bytes changed outside, "
            f"{sum(s['rollback_identical'] for s in nf4)} of {len(nf4)} storms undone to the byte; a collapse of rows takes {t['speed']['rows']['median_ms']:.2f} ms")


def tracking(): return '; '.join(f"{k}: {v['share']:.1%} of the training time" for k, v in saved('tracking.json')['training'].items())


def function_score():
    from function_score import summary
    from plasticity_nb.tracking.function_tracking import function_score
    found = [r for r in saved('function_score.jsonl') if (r['model'], r['part']) == ('smollm2-135m', 'report')]
    s = summary(found, lambda r: function_score(r['parts']))
    return f"{s['edits']} edits: AUC {s['auc_measurement']:.4f} by measured harm, Spearman with the harm {s['spearman']:.2f}"


def stress():
    from stress import study
    k = study()
    lost = lambda n: [r for r in k[n].rows() if r['arm'] == 'alternating'][0]['lost']['mean']
    rise = lambda a: next(r['rise']['mean'] for r in k['targeted'].rows() if (r['arm'], r['cycle'], r['task']) == (a, 1, 'prose'))
    return f"by turns, the first of two tasks loses {lost('contradicting'):.0%} of its gain where they contradict each other, {lost('unrelated'):.0%} where they do not; targeted damage costs {rise('targeted')/rise('random'):.1f} × random damage"


def redistribution():
    r = saved('redistribution.json')
    several = [x for x in r['false_calls'] if x['seeds'] > 1]
    return '; '.join(f"heads closed by {n}: {sum(x['frame']['flow'])} flows" for n, x in r['pruned_by'].items()) + f", where there is none {sum(x['draws_with_a_flow'] for x in several)} of {sum(x['draws'] for x in several)} draws show one"


def smollm2_cpu():
    s, = saved('smollm2_cpu.json')
    x, = s['seeds']
    return f"{x['cycles'][-1]['learn']:.2f} where dense is at {x['cycles'][-1]['dense']:.2f}, one seed, {x['seconds']/60:.0f} minutes"


LINES = {  # question, what was asked for, what came out, command (None: the first of the docstring), page
    'cycles': ('Do pruning and growing help?', 'below the dense model', cycles, lambda: saved('cycles.json')[-1]['command'], 'numbers.ipynb#does-pruning-and-growing-help'),
    'learning': ('What does a pruned model reach by learning?', '', learning, 'python benchmarks/learning.py --plan report --recipes R --device cuda', 'numbers.ipynb#with-the-best-recipe-that-was-found'),
    'adaptive': ('Does choosing anew beat any fixed choice?', '1.10 × the best fixed run', adaptive, 'python benchmarks/adaptive.py', 'numbers.ipynb#does-it-pay-to-choose-anew-in-every-cycle'),
    'factorial': ('What does sharing work in an experiment save?', '3 times fewer tokens', factorial, None, 'numbers.ipynb#a-whole-experiment'),
    'redistribution': ('Which heads take over from pruned ones?', 'a false discovery rate of 10 %', redistribution, None, 'experiment/01_redistribution.ipynb#a-real-case'),
    'smollm2_cpu': ('What does a run on a small CPU come to?', '', smollm2_cpu, lambda: saved('smollm2_cpu.json')[0]['command'], 'index.ipynb'),
    'pruning': ('What is a strategy worth without learning?', '', pruning, 'python benchmarks/pruning.py --model_name smollm2-135m --device cuda', 'cycle/00_refit.ipynb#on-a-real-model'),
    'ridge': ('Which ridge does a refit need?', '', ridge, 'python benchmarks/ridge.py --device cuda', 'cycle/00_refit.ipynb#on-a-real-model'),
    'compact': ('What is saved when heads are cut out?', 'what the FLOPs allow', compact, None, 'cycle/04_compact.ipynb'),
    'rcg': ('Does RCG end loops?', 'rep-4 ≤ 0.20, perplexity ≤ +2 %', rcg, 'python benchmarks/rcg.py report --texts T', 'numbers.ipynb#rcg'),
    'rcg_cost': ('What do watching and repairing cost?', 'watched ≤ 1.05 ×', rcg_cost, None, 'numbers.ipynb#what-rcg-costs-on-a-cpu'),
    'widgets': ('What does it cost to look on in the stress monitor?', 'drawing ≤ 50 ms, a text ≤ 1.10 ×', widgets, None, 'numbers.ipynb#what-looking-on-costs'),
    'speed': ('What does looking at attention cost?', 'entropy ≤ 1.15 ×', speed, None, 'numbers.ipynb#what-watching-costs'),
    'architectures': ('Which architectures hold?', '', architectures, None, 'numbers.ipynb#which-architectures-hold'),
    'transfers': ('Is weight lost when it is moved?', 'nothing lost', transfers, None, 'numbers.ipynb#what-moving-weight-costs'),
    'tracking': ('What does recording cost?', '', tracking, None, 'numbers.ipynb#what-recording-costs'),
    'function_score': ('Does the function score see harm?', '', function_score, None, 'numbers.ipynb#what-the-function-score-sees'),
    'stress': ('What do the stress protocols find in tiny?', '', stress, None, 'tracking/03_stress_protocols.ipynb#a-small-study')}


def overview():
    "A dict per benchmark, in the order of the page."
    out, kept = [], files()
    for stem in [*LINES, *sorted(({f.stem for f in HERE.glob('*.py')} | {*kept}) - {*LINES, 'overview'})]:
        question, asked, measured, command, page = LINES.get(stem) or (said(stem)[0], '', str, None, None)
        out.append(dict(question=question, asked=asked, measured=measured(), files=kept.get(stem, []), command=command() if callable(command) else command or said(stem)[1], page=page))
    return out


def table():
    "Lines of a Markdown table."
    link = lambda r: f"[{r['question']}]({r['page'].removeprefix('numbers.ipynb')})" if r['page'] else r['question']
    rows = [f"| {link(r)} | {r['asked'] or '–'} | {r['measured'] or '–'} | `{r['command']}` → {', '.join(r['files']) or 'no file'} |" for r in overview()]
    return '\n'.join(['| question | asked for | came out | command → file |', '|---|---|---|---|', *rows])


if __name__ == '__main__': print(table())
