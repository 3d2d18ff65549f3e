"""What is gained when pruned heads are really gone: parameters, size on disk, KV cache and prefill time, before and after, beside what the removed FLOPs allow.

    python benchmarks/compact.py                        # SmolLM2-135M, 1024 tokens, about 6 minutes
    python benchmarks/compact.py --only architectures   # every architecture of transformers at tiny random size: can heads and neurons be cut out, and why not; 3 minutes
    python benchmarks/compact.py --model_name tiny --tokens 256 --repeats 5 --output /tmp/compact.json

Speed-ups are medians over rounds of (the whole model's time / this one's time in the same round); rounds interleave the models in an order that changes. The
control is the whole model a second time: its distance from 1 is what noise alone does. Which heads go does not matter for time and is drawn at random.

An architecture is cut when the compact model gives the logits of the masked one (gates of an instrument, neurons multiplied by hooks) to 1e-5 of the largest logit:
a left-padded batch read at once, and with the last token read from a cache, for two random subsets of heads and neurons and one in which the first layer has no head."""
import json, os, platform, random, signal, statistics as st, tempfile, time, warnings
from pathlib import Path

from fastcore.script import call_parse

VARIANTS = {'whole model': None, 'whole model again (control)': None, 'compact, nothing pruned': (1., 1., 1.), 'half of the heads': (.5, 1., 1.),
            'half of the KV groups': (1., .5, 1.), 'half of the heads, half of the neurons': (.5, 1., .5)}


def share(n, keep, rng):
    "BoolTensor [n] with a share of its entries True."
    import torch
    x = torch.zeros(n, dtype=torch.bool)
    x[torch.randperm(n, generator=rng)[:round(n*keep)]] = True
    return x


def prune(lm, heads, groups, neurons):
    "Shares that stay, at random -> the compact model."
    import torch
    from plasticity_nb.cycle.compact import compact
    a, rng = lm.anatomy, torch.Generator().manual_seed(0)
    keep = a.exists.clone()
    keep[a.exists] = share(int(a.exists.sum()), heads, rng)
    at = share(sum(a.kv_heads), groups, rng).split(a.kv_heads)
    for i, l in enumerate(a.layers): keep[i, :l.n_heads] &= at[i][l.kv_index]
    return compact(lm, keep, [share(l.mlp.width, neurons, rng) for l in a.layers])


def flops(lm, tokens):
    "Of a prefill: products with weights, and of causal attention the half that is not masked; the output layer sees one token."
    import torch
    from plasticity_nb.anatomy import is_projection
    out = lm.model.get_output_embeddings()
    linear = sum(2 * m.weight.numel() * (1 if m is out else tokens) for m in lm.model.modules() if is_projection(m))
    return linear + sum(l.n_heads * (l.head_dim + l.value_dim) * tokens * (tokens+1) for l in lm.anatomy.layers)


def disk(lm):
    "Bytes of the saved weights."
    from plasticity_nb.cycle.compact import save_compact
    from plasticity_nb.models import quiet_bars
    with tempfile.TemporaryDirectory() as d, quiet_bars():
        if hasattr(lm.model, 'cuts'): save_compact(lm, f'{d}/m')
        else: lm.model.save_pretrained(f'{d}/m')
        return sum(p.stat().st_size for p in Path(d).rglob('*.safetensors'))


def prefill(lm, ids):
    "Seconds, and the cache."
    t = time.perf_counter()
    past = lm.model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return time.perf_counter() - t, past


def shaken(kind):
    "A tiny random model in which heads matter and differ, in their norms and biases too."
    import torch
    from plasticity_nb.models import as_lm
    from plasticity_nb.zoo import tiny_random
    model, rng = tiny_random(kind), torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.is_floating_point(): p.data = p.data*2 if p.dim() == 2 else p.data + .1*torch.randn(p.shape, generator=rng)
    model.tie_weights()
    return as_lm(model, name=kind)


def readings(model):
    "Logits of real tokens: at once, and of a last token from a cache, or only the first where the model has no cache."
    import torch
    ids, real = torch.arange(3, 27).view(2, 12), (torch.arange(12) >= torch.tensor([[4], [0]])).long()
    with torch.no_grad():
        ys = [model(input_ids=ids, attention_mask=real, use_cache=False).logits]
        try:
            past = model(input_ids=ids[:, :-1], attention_mask=real[:, :-1], use_cache=True).past_key_values
            ys.append(model(input_ids=ids[:, -1:], attention_mask=real, past_key_values=past, use_cache=True).logits)
        except Exception: pass # some have no cache, or none for padded texts; the model that is compared to them must not either
    return [y if y.shape[1] == 1 else y[real.bool()] if y.shape[:2] == ids.shape else y for y in ys]


def masked_readings(lm, gates, neurons):
    from plasticity_nb.attention import instrument
    hooks = [lm.model.get_submodule(l.mlp.down.name).register_forward_pre_hook(lambda m, args, n=n: (args[0]*n,)) for l, n in zip(lm.anatomy.layers, neurons) if n is not None]
    try:
        with instrument(lm) as inst:
            inst.gates.data.copy_(gates)
            return readings(lm.model)
    finally:
        for h in hooks: h.remove()


def outcome(lm, gates, neurons):
    "'cut', 'cut, with fillers', or why not; and the gap."
    import torch
    from plasticity_nb.cycle.compact import compact
    from plasticity_nb.errors import PlasticityError
    try: small = compact(lm, gates, neurons)
    except PlasticityError as e: return str(e), 0.
    want, got = masked_readings(lm, gates, neurons), readings(small.model)
    if len(want) != len(got): return 'cut, but what can be read from a cache differs', float('inf')
    gap = torch.stack([(x-y).abs().max()/x.abs().max() for x, y in zip(want, got) if x.numel()]).max().item()  # nan, if one is
    return ('cut' if sum(map(len, small.model.cuts.heads.values())) == int((gates != 0).sum()) else 'cut, with fillers'), gap


def examine(kind):
    "What can be cut out of an architecture."
    import torch
    lm = shaken(kind)
    a, found, gaps = lm.anatomy, [], []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        gates = ((torch.rand(a.exists.shape, generator=rng) < .6) & a.exists).float()
        gates[:, 0] = 1.
        if seed == 2: gates[0] = 0
        neurons = [None if l.mlp is None else (torch.rand(l.mlp.width, generator=rng) < .5).float() for l in a.layers]
        what, gap = outcome(lm, gates, neurons)
        found.append(what); gaps.append(gap)
    return dict(heads=found[0] if found[0] != 'cut' else found[1], empty_layer=found[2], mlps=sum(l.mlp is not None for l in a.layers), layers=a.n_layers, gap=max(gaps))


def isolated(kind):
    "`examine` in a forked process with a minute of CPU time."
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r); signal.setitimer(signal.ITIMER_PROF, 60)
        try: row = examine(kind)
        except Exception as e: row = dict(error=f"{type(e).__name__}: {' '.join(str(e).split())[:200]}")
        with os.fdopen(w, 'w') as f: json.dump(row, f)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: out = f.read()
    os.waitpid(pid, 0)
    return json.loads(out) if out else dict(error='it needs more than a minute')


def architectures():
    "All that the anatomy describes."
    import torch
    from transformers.utils import logging
    torch.set_num_threads(1); warnings.filterwarnings('ignore'); logging.set_verbosity_error(); logging.disable_progress_bar()
    kinds = [k for k, v in json.loads(Path(__file__).with_name('architectures.json').read_text())['architectures'].items() if not v['fails']]
    rows = {}
    for k in kinds:
        rows[k] = isolated(k)
        print(f'{k:24}', rows[k].get('error') or f"{rows[k]['heads']} | {rows[k]['empty_layer']} | {rows[k]['gap']:.0e}", flush=True)
    return rows


def speed(model_name, tokens, repeats):
    "Time the models and print what each gains."
    import torch
    from plasticity_nb.cycle.compact import cache_bytes
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    lm = load_lm(model_name, device='cpu')
    ids = token_blocks(load_text('python-docs').split('eval'), lm.tokenizer, block_len=tokens, max_blocks=1).ids
    models = {k: lm if v is None else prune(lm, *v) for k, v in VARIANTS.items()}
    times, rng = {k: [] for k in models}, random.Random(0)
    with torch.no_grad():
        kv = {k: cache_bytes(prefill(m, ids)[1]) for k, m in models.items()}
        for i in range(repeats + 1):
            for k in rng.sample(list(models), len(models)):
                t, _ = prefill(models[k], ids)
                if i: times[k].append(t)
    whole, rows = times['whole model'], {}
    for k, m in models.items():
        rows[k] = dict(parameters=m.n_params, disk_bytes=disk(m), kv_bytes=kv[k], seconds=st.median(times[k]), speedup=st.median(a/b for a, b in zip(whole, times[k])),
                       fastest=min(whole)/min(times[k]), ceiling=flops(lm, tokens)/flops(m, tokens))
        rows[k]['of_ceiling'] = rows[k]['speedup']/rows[k]['ceiling']
    print('| | parameters | MB on disk | KV cache, MB | seconds | speed-up | FLOPs allow | of that |\n|---|---|---|---|---|---|---|---|')
    for k, r in rows.items():
        print(f"| {k} | {r['parameters']/1e6:.1f} M | {r['disk_bytes']/2**20:.0f} | {r['kv_bytes']/2**20:.1f} | {r['seconds']:.3f} | {r['speedup']:.3f} | {r['ceiling']:.3f} | {r['of_ceiling']:.1%} |")
    return dict(model=model_name, tokens=tokens, repeats=repeats, threads=torch.get_num_threads(), machine=platform.machine(), torch=torch.__version__, rows=rows)


@call_parse
def main(model_name: str = 'smollm2-135m',  # as in plasticity_run
         tokens: int = 1024,  # in the one text
         repeats: int = 15,  # rounds; the first is not counted
         only: str = None,  # 'speed' or 'architectures': the other half of the output file is kept
         output: str = 'benchmarks/compact.json'):  # what is written
    "Time the models, try the architectures."
    result = json.loads(Path(output).read_text()) if only and Path(output).exists() else {}
    if only != 'architectures': result |= speed(model_name, tokens, repeats)
    if only != 'speed' and model_name == 'smollm2-135m': result['architectures'] = architectures()
    Path(output).write_text(json.dumps(result, indent=1) + '\n')
