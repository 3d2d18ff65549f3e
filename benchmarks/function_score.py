"""Whether the score of function tracking sees what matters: labelled edits of a model, harmless and harmful; and what a comparison costs.

    python benchmarks/function_score.py                          # SmolLM2-135M, 200 edits; 13 minutes of one core, goes on where it was stopped
    python benchmarks/function_score.py --model_name tiny        # 192 edits, 2 minutes
    python benchmarks/function_score.py --model_name tiny --part choose  # other edits, prompts and texts, by which the weights of the score were chosen
    python benchmarks/function_score.py --part cost              # two SmolLM2 models, 16 prompts: seconds and memory, in a fresh process; 1 minute
    python benchmarks/function_score.py --part table             # print what was measured

The rules, as they stood before anything of the `report` part was measured:
* An edit is harmless if the edited model computes the same function up to rounding: heads in another order within their KV groups (and KV groups
  in another order), neurons in another order, values up and output projection down by the same factor, `up` and `down`, queries and keys alike,
  coordinates of the residual stream in another order, weights or everything in 16 bits, grown heads with zero output columns and open gates
  (against the pruned model), compact against gated.
* An edit is made to harm: random heads closed, noise on weights, layers exchanged, neurons zeroed, weights rounded to few bits. Whether it does,
  held-out text says: *harmful by measurement* if the NLL rises by more than twice the largest change that any 16-bit edit makes; what is made to
  harm and stays below is *too small to matter*. AUCs are given with these as harmful (by construction), as harmless (by measurement) and left out.
* Prompts of the score come from the training half of the text, the NLL of the labels from the held-out half. The `choose` part uses other prompts,
  other blocks, another seed and every third edit; it was run on tiny alone.
* Spearman's correlation is between the score and the NLL change (with its sign; beside it, without); among all edits, changes below 1e-5 nats count as 0.

Adds a line to benchmarks/function_score.jsonl after every edit, and does not do again what is there."""
import copy, json, os, platform, random, subprocess, sys, time
from pathlib import Path

from fastcore.script import call_parse

SIZES = {'smollm2-135m': ((3, 48), (4, 72))}  # prompts of the score and blocks of the labels: number, tokens
MORE = (8, 48), (16, 72)  # for smaller models


# --- edits: functions of (model, rng), in place; a list of heads that comes back is closed by gates

def some(model, n, rng):
    "n layers, drawn at random."
    import torch
    return [model.model.layers[i] for i in torch.randperm(len(model.model.layers), generator=rng)[:n].tolist()]


def rows(index, size):
    import torch
    return (index[:, None]*size + torch.arange(size)).flatten()


def permute_heads(model, rng, n, groups):
    "Query heads within their KV groups, and the groups."
    import torch
    for a in (l.self_attn for l in some(model, n, rng)):
        D, G = a.head_dim, a.num_key_value_groups
        kv = a.k_proj.out_features//D
        order = torch.randperm(kv, generator=rng) if groups else torch.arange(kv)
        at = rows(torch.cat([g*G + torch.randperm(G, generator=rng) for g in order]), D)
        for p, i in ((a.q_proj, at), (a.k_proj, rows(order, D)), (a.v_proj, rows(order, D))): p.weight.copy_(p.weight[i])
        a.o_proj.weight.copy_(a.o_proj.weight[:, at])


def permute_neurons(model, rng, n):
    import torch
    for m in (l.mlp for l in some(model, n, rng)):
        at = torch.randperm(m.up_proj.out_features, generator=rng)
        for p in (m.up_proj, m.gate_proj): p.weight.copy_(p.weight[at])
        m.down_proj.weight.copy_(m.down_proj.weight[:, at])


def factors(n, rng):
    import torch
    return (torch.rand(n, generator=rng)*4 - 2).exp()


def scale_vo(model, rng, n):
    "A factor for every KV head."
    for a in (l.self_attn for l in some(model, n, rng)):
        f = factors(a.v_proj.out_features//a.head_dim, rng)
        a.v_proj.weight.mul_(f.repeat_interleave(a.head_dim)[:, None])
        a.o_proj.weight.div_(f.repeat_interleave(a.head_dim*a.num_key_value_groups))


def scale_qk(model, rng, n):
    for a in (l.self_attn for l in some(model, n, rng)):
        f = factors(a.k_proj.out_features//a.head_dim, rng)
        a.k_proj.weight.mul_(f.repeat_interleave(a.head_dim)[:, None])
        a.q_proj.weight.div_(f.repeat_interleave(a.head_dim*a.num_key_value_groups)[:, None])


def scale_up_down(model, rng, n):
    for m in (l.mlp for l in some(model, n, rng)):
        f = factors(m.up_proj.out_features, rng)
        m.up_proj.weight.mul_(f[:, None]); m.down_proj.weight.div_(f)


def permute_residual(model, rng):
    import torch
    at = torch.randperm(model.config.hidden_size, generator=rng)
    for name, p in model.named_parameters():
        p.copy_(p[at] if p.dim() == 1 or name.endswith(('o_proj.weight', 'down_proj.weight')) else p[:, at])


def weights_bf16(model, rng, n):
    for l in some(model, n, rng):
        for p in l.parameters(): p.copy_(p.bfloat16().float())


def close_heads(model, rng, n):
    import torch
    H = model.config.num_attention_heads
    return [divmod(i, H) for i in torch.randperm(len(model.model.layers)*H, generator=rng)[:n].tolist()]


def noise(model, rng, size, n):
    import torch
    for l in some(model, n, rng):
        for p in l.parameters():
            if p.dim() == 2: p.add_(size*p.std()*torch.randn(p.shape, generator=rng))


def swap_layers(model, rng, adjacent):
    import torch
    L = len(model.model.layers)
    i, j = torch.randperm(L, generator=rng)[:2].tolist()
    if adjacent: i = min(i, L-2); j = i+1
    for p, q in zip(model.model.layers[i].parameters(), model.model.layers[j].parameters()):
        keep = p.clone(); p.copy_(q); q.copy_(keep)


def zero_neurons(model, rng, share, n):
    import torch
    for l in some(model, n, rng):
        w = l.mlp.down_proj.weight
        w[:, torch.randperm(w.shape[1], generator=rng)[:round(share*w.shape[1])]] = 0


def few_bits(model, rng, bits):
    "Weights of the blocks rounded to the nearest of 2^bits-1 levels, row by row."
    for l in model.model.layers:
        for p in l.parameters():
            if p.dim() == 2:
                step = p.abs().amax(1, keepdim=True)/(2**(bits-1) - 1)
                p.copy_((p/step).round()*step)


def edits(L):
    "(kind, label, size, function of (model, rng)) for a model of L layers; 'dtype', 'grow' and 'compact' are built by `prepared`."
    few, all_ = (1, L//3, L), (1, L)
    do = lambda f, *a: (lambda model, rng: f(model, rng, *a))
    harmless = [*[('heads permuted', n, do(permute_heads, n, g)) for n in few for g in (False, True) for _ in range(3)],
        *[('neurons permuted', n, do(permute_neurons, n)) for n in few for _ in range(5)], *[('v, o rescaled', n, do(scale_vo, n)) for n in all_ for _ in range(6)],
        *[('up, down rescaled', n, do(scale_up_down, n)) for n in all_ for _ in range(6)], *[('q, k rescaled', n, do(scale_qk, n)) for n in all_ for _ in range(4)],
        *[('residual permuted', L, permute_residual) for _ in range(4)], *[('16-bit weights', n, do(weights_bf16, n)) for n in (1, L//4, L//2, L) for _ in range(2)],
        ('bfloat16', L, 'dtype'), ('float16', L, 'dtype'), *[('grown, open', n, 'grow') for n in (1, 4, 16) for _ in range(2)], *[('compact', n, 'compact') for n in (1, 4, 16) for _ in range(2)]]
    harmful = [*[('heads pruned', n, do(close_heads, n)) for n in (1, 2, 4, 8, 16, 32, 64, 128) for _ in range(4) if n < 9*L],
        *[('noise', s, do(noise, s, L)) for s in (.01, .02, .05, .1, .2, .3, .5) for _ in range(3)], *[('noise, few layers', s, do(noise, s, max(1, L//6))) for s in (.1, .3, 1.) for _ in range(3)],
        *[('layers exchanged', k, do(swap_layers, k == 'adjacent')) for k in ('adjacent', 'any') for _ in range(7)],
        *[('neurons zeroed', s, do(zero_neurons, s, L)) for s in (.01, .05, .1, .2, .4, .7) for _ in range(4)], *[('neurons zeroed, one layer', s, do(zero_neurons, s, 1)) for s in (.5, 1.) for _ in range(2)],
        *[('few bits', b, do(few_bits, b)) for b in (8, 6, 5, 4, 3)]]
    return [(k, 'harmless', s, f) for k, s, f in harmless] + [(k, 'harmful', s, f) for k, s, f in harmful]


def prepared(what, name, lm, rng, size):
    "The models before and after, of edits that are not in place; and what takes gates off again."
    import torch
    from plasticity_nb.attention import instrument
    from plasticity_nb.cycle.compact import compact
    from plasticity_nb.cycle.grow import grow_fresh
    from plasticity_nb.cycle.prune import Vault, prune_heads
    from plasticity_nb.models import LM
    if what == 'dtype': return None, LM(copy.deepcopy(lm.model).to(getattr(torch, name)), lm.tokenizer, name), None
    inst = instrument(lm)
    vault, heads = Vault(inst), close_heads(lm.model, rng, size)
    prune_heads(inst, heads, vault)
    before = compact(inst)
    if what == 'grow':
        grow_fresh(inst, heads, vault, torch.rand(lm.anatomy.exists.shape, generator=rng))
        for h in heads: inst.gates.data[h] = 1.
    return before, inst, inst.remove


# --- measuring

def texts(lm, part):
    "Prompts of the score and blocks of the labels; those of the two parts do not overlap."
    from plasticity_nb.text import load_text, token_blocks
    corpus, odd = load_text('python-docs'), int(part == 'choose')
    (n, T), (m, S) = SIZES.get(lm.name, MORE)
    return list(token_blocks(corpus.split('train'), lm.tokenizer, T, 2*n).ids[odd::2]), token_blocks(corpus.split('eval'), lm.tokenizer, S, 2*m).ids[odd::2]


def heldout(model, blocks):
    from plasticity_nb.metrics import block_nll, eval_mode
    from plasticity_nb.models import as_lm
    with eval_mode(as_lm(model).model): return block_nll(as_lm(model).model, blocks).double().mean().item()


def readings(model, prompts):
    from plasticity_nb.tracking.function_tracking import Reader
    with Reader(model) as a: return a, [a.read(x) for x in prompts]


def compared(a, read, after, prompts):
    "Parts of the score and what stands beside it."
    from plasticity_nb.tracking.function_tracking import Comparison, Reader
    with Reader(after) as b:
        both = Comparison(a, b)
        for x, r in zip(prompts, read): both.add(x, r, b.read(x))
        r = both.result()
    js = [x for x in r['heads']['js_partner'] if x is not None]
    return dict(score=r['score'], parts=r['parts'], **{k: r['outputs'][k] for k in ('kl', 'top1', 'nll_change')}, cosine=sum(r['layers']['cosine'])/len(r['layers']['cosine']),
                js=sum(js)/len(js), moved=sum(p is not None and p != h for p, h in zip(r['heads']['partner'], r['heads']['head'])))


def validate(model_name, part, path, backwards):
    "Do all edits of a part that are not in the file yet."
    import torch
    from plasticity_nb.models import load_lm
    lm = load_lm(model_name, device='cpu')
    prompts, blocks = texts(lm, part)
    a, read = readings(lm, prompts)
    dense, pristine = heldout(lm, blocks), [p.detach().clone() for p in lm.model.parameters()]
    done = lambda i: any((r['model'], r['part'], r.get('edit')) == (model_name, part, i) for r in lines(path))
    torch.set_grad_enabled(False)
    todo = list(enumerate(edits(len(lm.model.model.layers))))
    random.Random(0).shuffle(todo)  # so that what is there when a run is stopped is a fair sample
    for i, (kind, label, size, f) in reversed(todo) if backwards else todo:
        if (part == 'choose' and i % 3) or done(i): continue
        t, rng = time.process_time(), torch.Generator().manual_seed(1000*(part == 'choose') + i)
        before, undo = None, None
        if isinstance(f, str): before, after, undo = prepared(f, kind, lm, rng, size)
        else:
            after, closed = lm, f(lm.model, rng)
            if closed:
                from plasticity_nb.attention import instrument
                after = instrument(lm); undo = after.remove
                for h in closed: after.gates.data[h] = 0
        side = (a, read) if before is None else readings(before, prompts)
        row = compared(*side, after, prompts)
        was = dense if before is None else heldout(before, blocks)
        row = dict(model=model_name, part=part, edit=i, kind=kind, label=label, size=size, nll_before=was, nll_after=heldout(after, blocks), **row)
        if undo: undo()
        for p, w in zip(lm.model.parameters(), pristine): p.copy_(w)
        row['cpu_seconds'] = round(time.process_time() - t, 2)
        with open(path, 'a') as out: out.write(json.dumps(shortened(row)) + '\n')
        print(f"{i:3} {kind:26} {size!s:9} score {row['score']:.6f}  KL {row['kl']:.2e}  NLL {row['nll_after'] - was:+.2e}  {row['cpu_seconds']} s", flush=True)


def shortened(x):
    "Floats with eight digits."
    return {k: shortened(v) for k, v in x.items()} if isinstance(x, dict) else float(f'{x:.8g}') if isinstance(x, float) else x


def lines(path):
    return [json.loads(l) for l in Path(path).read_text().splitlines()] if Path(path).exists() else []


# --- what a comparison costs

def memory(key):
    "Bytes that /proc says of this process: VmRSS now, or VmHWM at most."
    return 1024*int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])


def cost_here(model_name, prompts):
    "Compare two models in this process; a line of JSON."
    import torch
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    from plasticity_nb.tracking.function_tracking import compare_models
    one, two = (load_lm(model_name, device='cpu') for _ in range(2))
    rng = random.Random(0)
    ids = [x[:rng.randint(64, 128)] for x in token_blocks(load_text('python-docs').split('train'), one.tokenizer, 128, prompts).ids]
    with torch.no_grad():
        for m in (one, two):
            for p in m.model.parameters(): p.mul_(1.)  # each has its own weights in memory
            m.model(ids[0][None], use_cache=False)
        for p in two.model.parameters(): p.add_(.05*p.std()*torch.randn(p.shape))
    t = time.perf_counter()
    with torch.no_grad():
        for m in (one, two):
            for x in ids: m.model(x[None], use_cache=False)
    plain = time.perf_counter() - t
    import gc; gc.collect()
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    loaded, t = memory('VmRSS'), time.perf_counter()
    r = compare_models(one, two, ids)
    seconds, peak, weights = time.perf_counter() - t, memory('VmHWM'), sum(p.nbytes for m in (one, two) for p in m.model.parameters())
    print(json.dumps(shortened(dict(part='cost', model=model_name, prompts=len(ids), tokens=r['tokens'], threads=torch.get_num_threads(), machine=platform.machine(), torch=torch.__version__, seconds=seconds,
        plain_seconds=plain, weights=weights, loaded=loaded, peak=peak, of_process=peak/loaded, of_weights=1 + (peak - loaded)/weights, score=r['score']))))


# --- what came out

def auc(good, bad):
    "Share of pairs of a harmless and a harmful edit in which the harmless one scores higher; ties count half."
    return sum((g > b) + (g == b)/2 for g in good for b in bad)/(len(good)*len(bad)) if good and bad else float('nan')


def spearman(x, y):
    import pandas as pd
    return float(pd.Series(x).rank().corr(pd.Series(y).rank()))


def summary(found, score):
    "What one set of edits says of a score, a function of a line."
    change = lambda r: r['nll_after'] - r['nll_before']
    bound = 2*max(abs(change(r)) for r in found if r['kind'] in ('16-bit weights', 'bfloat16', 'float16'))
    safe, harm = ([r for r in found if r['label'] == k] for k in ('harmless', 'harmful'))
    small = [r for r in harm if change(r) <= bound]
    hurt = [r for r in harm if change(r) > bound]
    s = lambda rs: [score(r) for r in rs]
    exact = [r for r in safe if r['kind'] not in ('16-bit weights', 'bfloat16', 'float16')]
    return dict(edits=len(found), harmless=len(safe), made_to_harm=len(harm), bound=bound, too_small=len(small), exactly_one=sum(score(r) == 1 for r in exact), exact=len(exact),
        auc_construction=auc(s(safe), s(harm)), auc_measurement=auc(s(safe + small), s(hurt)), auc_left_out=auc(s(safe), s(hurt)),
        spearman=spearman(s(harm), [-change(r) for r in harm]), spearman_size=spearman(s(harm), [-abs(change(r)) for r in harm]),
        spearman_all=spearman(s(found), [-change(r) if abs(change(r)) > 1e-5 else 0. for r in found]),
        spearman_all_size=spearman(s(found), [-abs(change(r)) if abs(change(r)) > 1e-5 else 0. for r in found]))


def table(path):
    from plasticity_nb.tracking.function_tracking import SCORE_WEIGHTS, function_score
    rows = [r for r in lines(path) if r['part'] != 'cost']
    print(f'weights {SCORE_WEIGHTS}; AUC and Spearman of the score, and of its parts alone')
    for model, part in sorted({(r['model'], r['part']) for r in rows}):
        found = [r for r in rows if (r['model'], r['part']) == (model, part)]
        for name, score in dict(score=lambda r: function_score(r['parts']), **{f'{k} alone': (lambda r, k=k: round(r['parts'][k], 6)) for k in SCORE_WEIGHTS}, top1=lambda r: r['top1'], cosine=lambda r: round(r['cosine'], 6)).items():
            s = summary(found, score)
            if name == 'score': print(f"\n{model}, {part}: {s['edits']} edits, {s['harmless']} harmless, {s['made_to_harm']} made to harm; {s['exactly_one']} of {s['exact']} exact ones score 1; harmful by measurement: NLL +{s['bound']:.1e} and more, {s['too_small']} are too small to matter")
            print(f"  {name:16} AUC by construction {s['auc_construction']:.4f}, by measurement {s['auc_measurement']:.4f}, small ones left out {s['auc_left_out']:.4f}; Spearman harmful {s['spearman']:.4f}, of its size {s['spearman_size']:.4f}, all {s['spearman_all']:.4f}, of its size {s['spearman_all_size']:.4f}")
        for kind in dict.fromkeys(r['kind'] for r in found):
            of = [r for r in found if r['kind'] == kind]
            s, d = ([f(r) for r in of] for f in (lambda r: function_score(r['parts']), lambda r: r['nll_after'] - r['nll_before']))
            print(f"  | {kind} | {of[0]['label']} | {len(of)} | {min(s):.6f} … {max(s):.6f} | {min(d):+.1e} … {max(d):+.1e} |")
    for r in lines(path):
        if r['part'] == 'cost': print(f"\n{r['model']}, {r['prompts']} prompts, {r['tokens']} tokens, {r['threads']} threads: {r['seconds']:.1f} s (forward passes alone {r['plain_seconds']:.1f} s); peak {r['peak']/1e6:.0f} MB, {r['of_process']:.3f} times the process with both models, {r['of_weights']:.3f} times their weights")


@call_parse
def main(model_name: str = 'smollm2-135m',  # 'tiny', or any Llama-like model
         part: str = 'report',  # or 'choose', 'cost', 'table'
         prompts: int = 16,  # of `cost`
         here: bool = False,  # `cost` in this process
         backwards: bool = False,  # begin with the last edit: a second process that meets the first
         output: str = 'benchmarks/function_score.jsonl'):  # what is written
    "Validate the score, or measure what it costs."
    if part == 'cost' and here: return cost_here(model_name, prompts)
    if part == 'cost':
        out = subprocess.run([sys.executable, __file__, '--part', 'cost', '--here', '--model_name', model_name, '--prompts', str(prompts)], capture_output=True, text=True)
        if out.returncode: sys.exit(out.stderr)
        kept = [r for r in lines(output) if (r['part'], r['model']) != ('cost', model_name)] + [json.loads(out.stdout.splitlines()[-1])]
        Path(output).write_text(''.join(json.dumps(r) + '\n' for r in kept))
    elif part in ('report', 'choose'): validate(model_name, part, output, backwards)
    if Path(output).exists(): table(output)
