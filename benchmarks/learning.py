"""What a pruned model reaches by learning, beside the dense model on the same tokens, beside random heads, under several recipes.

    python benchmarks/learning.py --plan choose --list_only                  # the jobs, one a line
    python benchmarks/learning.py --plan choose --device cuda --part 0/4     # every fourth job, from the first; four processes share a GPU
    python benchmarks/learning.py --plan report --recipes cosine3e-4,late --device cuda
    python benchmarks/learning.py --table_only --on choose                   # which recipe wins on the part of the held-out text that chooses
    python benchmarks/learning.py --table_only                               # the other part: what is reported

A job is a model, pruned (or dense), that learns by one recipe with one seed, and a line in benchmarks/learning.jsonl; what stands there is not
done again. Held-out documents fall into two parts: recipes are chosen on the first, figures are given on the second. The dense model learns by the
same recipe, with the same texts in the same order; where a teacher is part of the recipe, also without one. The seed decides the order of the texts
and the random heads. Seconds of a job include choosing and refitting where it was the first to need them."""
import fcntl, gc, hashlib, json, math, os, statistics as st, tempfile, time, traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastcore.script import call_parse

PARTS = 'choose', 'report'  # of the held-out documents
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, two-sided, by number of seeds


@dataclass(frozen=True)
class How:
    "A recipe."
    lr: float = 3e-5  # AdamW's largest learning rate
    schedule: str = 'constant'  # after a warm-up of a tenth of the steps
    teacher: str = None  # 'before': the model before pruning; 'dense': the dense model that learned by the same recipe without a teacher, with the same seed
    share: float = .5  # of the teacher in the loss
    temperature: float = 1.
    at: tuple = (0.,)  # when heads go, as shares of the steps; the level is reached in equal parts
    lora: int = None  # rank
    steps: int = 150


COSINE = How(lr=3e-4, schedule='cosine')
RECIPES = {  # others are written after these: cosine3e-4+teacher=dense+at=0/.3+steps=500
    'plain': How(),  # as in DESIGN
    'cosine1e-4': replace(COSINE, lr=1e-4),
    'cosine3e-4': COSINE,
    'cosine6e-4': replace(COSINE, lr=6e-4),
    'before': replace(COSINE, teacher='before'),
    'dense': replace(COSINE, teacher='dense'),
    'dense9': replace(COSINE, teacher='dense', share=.9),
    'late': replace(COSINE, at=(.5,)),
    'gradual': replace(COSINE, at=(0., .2, .4)),
    'last': replace(COSINE, at=(1.,)),  # learn first, prune and refit at the end
    'lora': replace(COSINE, lr=1e-3, lora=16),
}


def recipe_of(name):
    "A recipe by its name, such as plain, or plain+steps=500+teacher=dense."
    base, *changes = name.split('+')
    kind = dict(at=lambda v: tuple(map(float, v.split('/'))), lora=int, steps=int, teacher=str, schedule=str)
    return replace(RECIPES[base], **{k: kind.get(k, float)(v) for k, v in (c.split('=') for c in changes)})


def untaught(name):
    "The name of the recipe with the same rate, schedule, adapters and steps, without a teacher, which prunes at the start."
    how = recipe_of(name)
    bare = replace(how, teacher=None, share=How.share, temperature=How.temperature, at=How.at)
    known = next((n for n, r in RECIPES.items() if replace(r, steps=how.steps) == bare), None)
    if known is None: known = f'plain+lr={how.lr:g}+schedule={how.schedule}' + (f'+lora={how.lora}' if how.lora else '')
    return known + (f'+steps={how.steps}' if how.steps != How.steps else '')


@dataclass(frozen=True)
class Job:
    "A line of the file."
    dataset: str
    recipe: str
    strategy: str = 'irreplaceable_iterative'  # or 'dense'
    refit: bool = True  # least squares after choosing
    level: float = 0.
    seed: int = 0

    @property
    def how(self): return recipe_of(self.recipe)


def dense(job, recipe=None): return replace(job, strategy='dense', refit=False, level=0., recipe=recipe or job.recipe)


def controls(job):
    "Dense jobs that a job stands beside."
    return [dense(job, untaught(job.recipe)), *([dense(job)] if job.how.teacher else [])]


STRATEGIES = {'choose': [('irreplaceable_iterative', True)], 'report': [('irreplaceable_iterative', True), ('random', True)],
              'strategies': [('taylor_iterative', True), ('taylor', True), ('irreplaceable_iterative', False), ('taylor_iterative', False), ('taylor', False), ('random', False)]}


def jobs_of(plan, datasets, recipes, seeds, levels):
    "Jobs, the most telling first; a dense model comes before those that it teaches."
    found = []
    for s in seeds:
        many = [Job(d, r, strategy, refit, l, s) for strategy, refit in STRATEGIES[plan] for l in levels for r in recipes for d in datasets]
        first = [c for j in many for c in controls(j)]
        found += [c for c in first if not c.how.teacher] + many + [c for c in first if c.how.teacher]
    return list(dict.fromkeys(found))


def key(job, facts):
    "What a line is known by; recipes count by what they say, not by name."
    how = replace(job.how, at=How.at) if job.strategy == 'dense' else job.how
    return json.dumps([*[v for k, v in asdict(job).items() if k != 'recipe'], asdict(how), facts])


@contextmanager
def locked(path):
    "One process at a time."
    with open(path, 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def halves(corpus):
    "Held-out documents in two parts of about equal size: for choosing, for reporting."
    from plasticity_nb.text import Corpus
    parts = {}, {}
    for name in sorted(corpus.docs, key=lambda n: -len(corpus.docs[n])):
        min(parts, key=lambda p: sum(map(len, p.values())))[name] = corpus.docs[name]
    return [Corpus(corpus.name, {n: p[n] for n in sorted(p)}, f'eval, {what}') for p, what in zip(parts, PARTS)]


class Bench:
    "Texts and models that jobs share."
    def __init__(self, model_name, device, sizes, scratch):
        self.model_name, self.device, self.sizes, self.scratch, self.texts = model_name, device, sizes, Path(scratch), {}
        self.scratch.mkdir(parents=True, exist_ok=True)

    def load(self, device=None):
        from plasticity_nb.models import load_lm
        return load_lm(self.model_name, dtype='float32', device=device or self.device)

    def text(self, dataset):
        "Training blocks, calibration for the refit, for choosing, and two parts of held-out text; cut once, shared through a file."
        import torch
        from plasticity_nb.text import Blocks
        from safetensors import safe_open
        from safetensors.torch import save_file
        if dataset not in self.texts:
            sizes = '-'.join(str(self.sizes[k]) for k in ('block_len', 'choose_blocks', 'refit_blocks', 'eval_blocks'))
            path = self.scratch / f"text-{self.model_name.replace('/', '-')}-{dataset}-{sizes}.safetensors"
            with locked(path.with_suffix('.lock')):
                if not path.exists():
                    found = self.cut(dataset)
                    save_file({f'{n}.{k}': getattr(b, k).to(torch.int32) for n, b in found.items() for k in ('ids', 'n_bytes')}, part := path.with_suffix('.part'),
                              {n: json.dumps([b.text, b.tokenizer, b.block_len]) for n, b in found.items()})
                    os.replace(part, path)
            with safe_open(path, 'pt') as f:
                self.texts[dataset] = {n: Blocks(f.get_tensor(n + '.ids').long(), f.get_tensor(n + '.n_bytes').long(), *json.loads(v)) for n, v in f.metadata().items()}
        return self.texts[dataset]

    def cut(self, dataset):
        "Blocks of a data set by their use."
        from plasticity_nb.text import load_text, token_blocks
        tok, s, whole = self.load(device='cpu').tokenizer, self.sizes, load_text(dataset)
        train, held = whole.split('train'), halves(whole.split('eval'))
        return {n: token_blocks(corpus, tok, s['block_len'], size) for n, corpus, size in
                [('train', train, None), ('refit', train, s['refit_blocks']), ('choosing', train, s['choose_blocks']), *zip(PARTS, held, [s['eval_blocks']] * 2)]}

    def order(self, inst, job, text):
        "Heads of the untouched model in the order in which they go, made once for the highest level; shared through a file."
        from plasticity_nb.cycle.prune import choose
        name = hashlib.sha256(repr((self.model_name, self.sizes, text['choosing'], job.strategy, job.seed if job.strategy == 'random' else 0)).encode()).hexdigest()[:16]
        path = self.scratch / f'order-{name}.json'
        with locked(path.with_suffix('.lock')):
            if not path.exists(): path.write_text(json.dumps(choose(inst, job.strategy, .5, text['choosing'], seed=job.seed)))
        return [tuple(h) for h in json.loads(path.read_text())]

    def teacher(self, job, text, facts):
        "The model before pruning, or the dense one that learned; in bfloat16 on a GPU."
        import torch
        from plasticity_nb.models import LM
        from safetensors.torch import load_file
        lm = self.load()
        if job.how.teacher == 'dense':
            control = dense(job, untaught(job.recipe))
            path = self.weights_of(control, facts)
            with locked(path.with_suffix('.lock')):
                if not path.exists(): self.run(control, facts)
            with torch.no_grad():
                kept = load_file(path)
                for n, p in lm.model.named_parameters(): p.copy_(kept[n])
        return LM(lm.model.to(torch.bfloat16), lm.tokenizer, lm.name) if lm.device.type == 'cuda' else lm

    def run(self, job, facts):
        "One job; gives what is measured."
        import torch
        from plasticity_nb.attention import instrument
        from plasticity_nb.cycle.finetune import learn
        from plasticity_nb.cycle.prune import choose
        from plasticity_nb.cycle.refit import refit
        from plasticity_nb.metrics import evaluate
        lm, how, started = self.load(), job.how, time.perf_counter()
        inst, text = instrument(lm), self.text(job.dataset)
        n_open = int((inst.gates != 0).sum())
        stages = [] if job.strategy == 'dense' else [(round(a * how.steps), round(job.level * n_open * (i+1) / len(how.at))) for i, a in enumerate(how.at)]
        assert not how.lora or all(step == 0 for step, _ in stages), 'adapters hide the projections that a refit would solve for: prune before them'
        found = dict(curve=[], heads=[], choose_seconds=0., refit_seconds=0.)
        def look(steps):
            found['curve'].append([steps, {p: evaluate(lm, text[p], batch_size=16).nll for p in PARTS}])
        def prune(upto, first):
            t, was = time.perf_counter(), inst.gates.detach().clone()
            more = upto - len(found['heads'])
            if first: new = self.order(inst, job, text)[:more]
            else: new = choose(inst, job.strategy, more / int((was != 0).sum()), text['choosing'], seed=job.seed)
            for l, h in new: inst.gates.data[l, h] = 0
            found['heads'] += [list(h) for h in new]
            found['choose_seconds'] += time.perf_counter() - t
            if job.refit:
                t = time.perf_counter()
                refit(inst, text['refit'], before=was)
                found['refit_seconds'] += time.perf_counter() - t
        look(0)
        for step, upto in stages:
            if step == 0: prune(upto, not found['heads'])
        if found['heads']: look(0)
        def on_step(step, loss):
            due = [upto for at, upto in stages if at == step + 1]
            if due and step + 1 == how.steps: look(step + 1)
            for upto in due: prune(upto, False)
            if (step + 1) % max(1, how.steps // 3) == 0 or step + 1 == how.steps: look(step + 1)
        teacher = self.teacher(job, text, facts) if how.teacher else None
        cuda = lm.device.type == 'cuda'
        if cuda: torch.cuda.synchronize()
        t, s = time.perf_counter(), self.sizes
        done = learn(inst, text['train'], how.steps, how.lr, s['batch_size'] // s['accumulate'], seed=job.seed, mixed_precision='bf16' if cuda else 'no', on_step=on_step,
                     teacher=teacher, schedule=how.schedule, teacher_share=how.share, temperature=how.temperature, lora=how.lora, accumulate=s['accumulate'])
        if how.lora: look(how.steps)  # with the adapters in the weights
        if job.strategy == 'dense' and not how.teacher: self.leave(job, lm, facts)
        gone = {tuple(h) for h in found['heads']}
        assert len(gone) == round(job.level * n_open) == int((inst.gates == 0).sum()) - int((~inst.anatomy.exists).sum())
        return dict(found, held_out={p: repr(text[p]) for p in PARTS}, train=repr(text['train']), calibration=repr(text['refit']), tokens=done.tokens,
                    loss=[sum(x) / len(x) for i in range(0, len(done), 10) if (x := done[i:i+10])], learn_seconds=time.perf_counter() - t, seconds=time.perf_counter() - started,
                    torch=torch.__version__, on=torch.cuda.get_device_name() if cuda else f'cpu, {torch.get_num_threads()} threads')

    def weights_of(self, job, facts):
        "File of a dense model that may teach."
        return self.scratch / f'dense-{hashlib.sha256(key(job, facts).encode()).hexdigest()[:16]}.safetensors'

    def leave(self, job, lm, facts):
        "Write its weights, whole or not at all."
        from safetensors.torch import save_file
        path = self.weights_of(job, facts)
        save_file({n: p.detach().cpu().contiguous().clone() for n, p in lm.model.named_parameters()}, part := path.with_suffix(f'.{os.getpid()}'))
        os.replace(part, path)

    def do(self, job, facts):
        "One job; who needs the weights of a dense model waits for it."
        if job.strategy != 'dense' or job.how.teacher: return self.run(job, facts)
        with locked(self.weights_of(job, facts).with_suffix('.lock')): return self.run(job, facts)


def tidy():
    "Free the memory of the models of a job."
    import torch
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()


def read(paths):
    "Lines of files, the last of each key."
    return {r['key']: r for p in paths if Path(p).exists() for l in Path(p).read_text().splitlines() if l.strip() for r in [json.loads(l)]}


def mean(xs, form='.3f'):
    "Mean, and half the width of its 95 % confidence interval."
    return f'{st.mean(xs):{form}}' + (f' ± {T95[len(xs)] * st.stdev(xs) / len(xs) ** .5:{form}}' if len(xs) in T95 else '')


def tables(rows, on):
    "Lines of Markdown tables, one for each data set and number of steps."
    last = lambda r: r['curve'][-1][1][on]
    start = lambda r: math.exp(r['curve'][1][1][on] - r['curve'][0][1][on])  # of a model that is pruned before it learns
    groups, out = {}, []
    for r in rows: groups.setdefault((r['model'], r['dataset'], r['how']['steps'], json.dumps(r['sizes'])), []).append(r)
    for (model, dataset, steps, sizes), rs in groups.items():
        full = [r for r in rs if r['strategy'] == 'dense']
        by = {}
        for r in full: by.setdefault(r['recipe'], {})[r['seed']] = r
        seeds = max((len(v) for v in by.values()), default=0)
        best = min((n for n in by if len(by[n]) == seeds), key=lambda n: st.mean(r['curve'][-1][1]['choose'] for r in by[n].values()), default=None)
        s = json.loads(sizes)
        out += ['', f"{model} on {rs[0]['held_out'][on]}: perplexity {math.exp(rs[0]['curve'][0][1][on]):.2f} before; {steps} steps of {s['batch_size']} × {s['block_len']} tokens ({rs[0]['train']}); "
                f"strongest dense recipe (by the part that chooses): {best}; on {', '.join(sorted({r['on'] for r in rs}))}", '',
                '| heads gone | strategy | recipe | seeds | perplexity | at once | **same recipe, dense** | without teacher, dense | strongest dense | random heads | seconds |', '|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|']
        lines = {}
        for r in rs: lines.setdefault((r['level'], r['strategy'] + (', refitted' if r['refit'] else ''), r['recipe']), []).append(r)
        lot = {(r['level'], r['recipe'], r['seed'], r['refit']): r for r in rs if r['strategy'] == 'random'}
        for (level, strategy, recipe), r in sorted(lines.items(), key=lambda x: (x[0][0], st.mean(map(last, x[1])))):
            def over(others): return mean([math.exp(last(a) - last(b)) for a, b in zip(r, others)]) if all(others) else ''
            plain = untaught(recipe)
            is_dense = strategy == 'dense'
            same = [by.get(recipe if r[0]['how']['teacher'] else plain, {}).get(x['seed']) for x in r]
            cells = [f'{level:.0%}', strategy, recipe, str(len(r)), mean([math.exp(last(x)) for x in r], '.2f'), '' if is_dense or r[0]['how']['at'] != [0.] else mean([start(x) for x in r]),
                     '' if is_dense else over(same), '' if is_dense and plain == recipe else over([by.get(plain, {}).get(x['seed']) for x in r]), over([by.get(best, {}).get(x['seed']) for x in r]),
                     '' if is_dense or strategy.startswith('random') else over([lot.get((level, recipe, x['seed'], x['refit'])) for x in r]), f"{st.mean(x['seconds'] for x in r):.0f}"]
            out.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(out[1:])


@call_parse
def main(plan: str = 'choose',  # 'choose': recipes; 'report': levels and random heads; 'strategies': all others
         model_name: str = 'smollm2-135m',
         datasets: str = None,  # with commas between; default: shakespeare to choose, both to report
         recipes: str = None,  # names with commas between, see RECIPES; default: all to choose
         seeds: str = None,  # with commas between; default: 0 to choose, 0,1,2 to report
         levels: str = None,  # with commas between; default: .3,.5 to choose, .1,.3,.5 to report
         only: str = None,  # jobs whose line of --list_only holds this
         part: str = '0/1',  # i/n: every n-th job from the i-th
         device: str = None,  # default: the GPU if there is one
         batch_size: int = 16,  # texts in a step
         accumulate: int = 2,  # parts it is computed in
         block_len: int = 512,  # tokens in a text
         choose_blocks: int = 16,  # training texts for choosing heads
         refit_blocks: int = 64,  # training texts for the refit
         eval_blocks: int = 48,  # held-out texts of each part
         seconds: float = math.inf,  # no job begins after so many
         scratch: str = None,  # folder of what jobs share; default: in the system's temporary folder
         done: str = None,  # other files with lines that need not be done again, with commas between
         list_only: bool = False,  # print the jobs
         table_only: bool = False,  # print the tables
         on: str = 'report',  # part of the held-out text in the tables: 'choose' or 'report'
         output: str = 'benchmarks/learning.jsonl'):  # what is added to
    "Do the jobs of a plan, or print what they gave."
    started, old = time.perf_counter(), [*(done.split(',') if done else []), output]
    if table_only: return print(tables(read(old).values(), on))
    split = lambda x, default, kind=str: [kind(v) for v in x.split(',')] if x else default
    choosing = plan == 'choose'
    if not (choosing or recipes): raise SystemExit('name the recipes that were chosen: --recipes NAME,NAME')
    jobs = jobs_of(plan, split(datasets, ['shakespeare'] if choosing else ['shakespeare', 'python-docs']), split(recipes, [*RECIPES]),
                   split(seeds, [0] if choosing else [0, 1, 2], int), split(levels, [.3, .5] if choosing else [.3, .5, .1], float))
    jobs = [j for j in jobs if not only or only in repr(j)]
    sizes = dict(batch_size=batch_size, accumulate=accumulate, block_len=block_len, choose_blocks=choose_blocks, refit_blocks=refit_blocks, eval_blocks=eval_blocks)
    if list_only: return print('\n'.join(map(repr, jobs)))
    i, n = map(int, part.split('/'))
    facts = lambda j: dict(sizes, model=model_name, text=bench.text(j.dataset)['train'].text)
    failed, bench = [], Bench(model_name, device, sizes, scratch or Path(tempfile.gettempdir()) / 'plasticity_learning')
    for job in jobs[i::n]:
        if (k := key(job, facts(job))) in read(old): continue
        if time.perf_counter() - started > seconds: break
        try: line = dict(asdict(job), how=asdict(job.how), model=model_name, sizes=sizes, **bench.do(job, facts(job)), key=k)
        except Exception:  # said, and the other jobs are done; the exit status tells
            traceback.print_exc()
            failed.append(job)
            continue
        finally: tidy()
        with open(output, 'a') as f: f.write(json.dumps(line) + '\n')
        last = line['curve'][-1][1]
        print(f"{time.perf_counter() - started:5.0f} s: {job.dataset} {job.recipe} {job.strategy} {'refitted ' if job.refit else ''}{job.level:.0%} seed {job.seed}: "
              + ', '.join(f"{math.exp(line['curve'][0][1][p]):.3f} -> {math.exp(line['curve'][bool(line['heads']) and 1][1][p]):.3f} -> {math.exp(v):.3f} ({p})" for p, v in last.items())
              + f"; {line['choose_seconds']:.0f} + {line['refit_seconds']:.0f} + {line['learn_seconds']:.0f} s", flush=True)
    if failed: raise SystemExit(f'{len(failed)} jobs failed: {failed}')
