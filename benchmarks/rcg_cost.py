"""What it costs to watch and to repair: tokens per second beside the plain model, interleaved in one run, and the size of the traces.

    python benchmarks/rcg_cost.py

Writes rcg_cost.json. Times are ratios to the plain loop of the same round; `again` is that loop once more, the noise.
"""
import argparse, json, os, platform, statistics as st, tempfile, time
from dataclasses import asdict
from pathlib import Path

import torch, transformers

from plasticity_nb.models import load_lm
from plasticity_nb.rcg.engine import RCG, RCGConfig, Decoder
from plasticity_nb.runs import Run

PROMPTS = ['The sea was calm that morning, and the old man', 'A list is a sequence of', 'In the beginning of the nineteenth century,']

def plain(lm, x, n):
    d = Decoder(lm, x)
    for _ in range(n): d.add(d.logits().argmax(-1))
    return d.ids[:,x.shape[1]:]

def by_generate(lm, x, n):
    return lm.model.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)[:,x.shape[1]:]

def sizes(lm, x, n=256):
    "Bytes that a repaired text leaves in a run folder, and what full traces of the same text would be."
    with tempfile.TemporaryDirectory() as d:
        rcg = RCG(lm, RCGConfig(), run=Run.create('rcg', d, asdict(RCGConfig())))
        g = rcg.generate(x, n, stop=False).finish()
        a,field = lm.anatomy,g.field
        token = 4*(field.heads[0].numel()+field.n_neurons)+4*sum(l.n_heads*l.value_dim+(l.mlp.width if l.mlp else 0) for l in a.layers) # stress of all, outputs of all, float32
        return dict(tokens=n, trace=rcg.path('trace').stat().st_size, journal=rcg.path('collapses').stat().st_size, full=n*token, collapses=int(g.fallen().sum()))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='smollm2-135m')
    p.add_argument('--n_tokens', type=int, default=48)
    p.add_argument('--rounds', type=int, default=4)
    p.add_argument('--output', default=Path(__file__).parent/'rcg_cost.json')
    a = p.parse_args()
    torch.set_grad_enabled(False)
    lm,n = load_lm(a.model, device='cpu'),a.n_tokens
    xs = [lm.tokenizer(t, return_tensors='pt').input_ids for t in PROMPTS]
    watch,closer,repair = RCG(lm),RCG(lm, RCGConfig(look_every=1)),RCG(lm)
    ways = dict(plain=plain, again=plain, generate=by_generate,
                watched=lambda lm,x,n: watch.generate(x, n, edits=False, stop=False).finish().tokens,
                **{'every look':lambda lm,x,n: closer.generate(x, n, edits=False, stop=False).finish().tokens, 'repaired':lambda lm,x,n: repair.generate(x, n, stop=False).finish().tokens})
    for x in xs: # the same tokens, and all warm
        want = plain(lm, x, n)
        for k,f in ways.items(): assert k=='repaired' or torch.equal(f(lm, x, n), want), k
    signals = [watch.generate(x, n, edits=False, stop=False).finish().signals['incoherence'] for x in xs]
    times = {k:[] for k in ways}
    for r in range(a.rounds):
        for x in xs:
            order = list(ways.items()); order = order[r%len(order):]+order[:r%len(order)]
            for k,f in order:
                t = time.perf_counter(); f(lm, x, n); times[k].append(time.perf_counter()-t)
    best = [min(times['plain'][i::len(xs)]) for i in range(len(xs))]
    out = dict(model=a.model, tokens=n, rounds=a.rounds, prompts=PROMPTS, threads=torch.get_num_threads(), cpu=platform.machine(), torch=torch.__version__, transformers=transformers.__version__,
               incoherent=round(float(torch.cat(signals, 1).gt(watch.config.listen).float().mean()), 3),
               ways={k:dict(ms_per_token=round(1000*st.median(v)/n, 2), ratio=round(st.median(u/w for u,w in zip(v, times['plain'])), 3), fastest=round(st.mean(min(v[i::len(xs)])/best[i] for i in range(len(xs))), 3)) for k,v in times.items()},
               traces={q or 'dense':[sizes(m, x) for x in xs] for q,m in ((None, lm), ('nf4', load_lm(a.model, device='cpu', quantize='nf4')))})
    Path(a.output).write_text(json.dumps(out, indent=1)+'\n')
    for k,v in out['ways'].items(): print(f"{k:>12}: {v['ms_per_token']:.1f} ms a token, {v['ratio']:.3f} times the plain loop ({v['fastest']:.3f} by the fastest)")
    print(out['traces'])

if __name__=='__main__': main()
