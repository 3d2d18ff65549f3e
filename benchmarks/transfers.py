"""What moving weight costs and whether anything is lost: one collapse on a large NF4 matrix, beside the way through dense weights, and long storms.

    python benchmarks/transfers.py                  # 4096 x 4096 in NF4; 10,000 collapses on each kind of storage
    python benchmarks/transfers.py --only speed     # a minute instead of ten

A collapse is a transfer from one pathway to the 25 % that carry the least (random) stress. Ratios are taken in one run, the two ways in turn.
Storms: random sources, receivers and shares on half of the matrix. Errors are relative, measured in float64 on the bytes themselves (level
times scale), and every pathway is looked at, not only the matrix; 16-bit types, and shared blocks
that never relax (where pathways end empty, and what 4 bits cannot hold is refused), have a tenth of the events."""
import json, platform, statistics as st, time
from pathlib import Path

from fastcore.script import call_parse

CONTROL = 'dequantise, edit, quantise the matrix'
KINDS = {'NF4 rows': ('nf4', 0, 1, False), 'NF4 rows, double quantisation': ('nf4', 0, 1, True), 'NF4 heads of 64 (columns)': ('nf4', 1, 64, False), 'NF4 heads of 32 (columns)': ('nf4', 1, 32, False),
         'NF4 neurons (columns)': ('nf4', 1, 1, False), 'float32 rows': ('float32', 0, 1, False), 'bfloat16 rows': ('bfloat16', 0, 1, False), 'float16 rows': ('float16', 0, 1, False)}


def layer(kind, n_out, n_in, double=False, device='cpu'):
    "A linear layer of random weights, in a module of its own."
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    torch.manual_seed(0)
    x, box = torch.randn(n_out, n_in) * .02, torch.nn.Module()
    if kind != 'nf4':
        box.fc = torch.nn.Linear(n_in, n_out, bias=False)
        box.fc.weight.data = x.to(getattr(torch, kind))
    else:
        box.fc = Linear4bit(n_in, n_out, bias=False, quant_type='nf4', compress_statistics=double)
        box.fc.weight = Params4bit(x, requires_grad=False, quant_type='nf4', compress_statistics=double, module=box.fc)
    return box.to(device)


def exact(weight):
    "The weights in float64, from the bytes."
    import torch
    if not hasattr(weight, 'quant_state'): return weight.data.double()
    qs, c = weight.quant_state, weight.data.flatten()
    return (qs.code.double()[torch.stack([c >> 4, c & 15], -1).long().flatten()].view(-1, qs.blocksize) * qs.absmax.double().view(-1, 1)).view(qs.shape)


def stored(w):
    "Copies of all bytes, one row a line."
    import torch
    parts = [w.weight.data, w.weight.quant_state.absmax] if hasattr(w.weight, 'quant_state') else [w.weight.data]
    n_out = w.weight.quant_state.shape[0] if len(parts) == 2 else len(parts[0])
    n = w.store.n_lines if w.dim else 1
    return [p.view(n_out, n, -1).contiguous().view(torch.uint8).clone() for p in parts]


def timed(f, device):
    import torch
    t = time.perf_counter()
    f()
    if device != 'cpu': torch.cuda.synchronize()
    return (time.perf_counter() - t) * 1e3


def speed(width, dim, n, repeats, device):
    "Milliseconds of a collapse between pathways of `width` rows or columns of an n x n matrix, and of the naive way."
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from plasticity_nb.weights import PathwayWeights
    box = layer('nf4', n, n, device=device)
    q, state = box.fc.weight.data.clone(), box.fc.weight.quant_state
    naive_state = type(state)(state.absmax.clone(), state.shape, state.code, state.blocksize, state.quant_type, state.dtype)
    groups = torch.arange(n).split(width)
    w = PathwayWeights(box, 'fc.weight', dim, groups)
    ours, first, naive, order = [], [], [], torch.Generator().manual_seed(0)
    for i in range(repeats + 3):
        stress = torch.rand(w.n, generator=order)
        src = stress.argmax()[None].to(device)
        dst = stress.topk(max(1, w.n // 4), largest=False).indices.sort().values.to(device)
        fresh = bool((w._slot < 0).any())
        t = timed(lambda: w.transfer(src, dst, .5), device)
        if i == 0: one = w.extra_bytes
        if i >= 3: (first if fresh else ours).append(t)

        def through_dense():
            D = dequantize_4bit(q, naive_state)
            V = D.view(n, w.n, -1) if dim else D.view(1, w.n, -1)
            share = .5 * V[:, src].abs().sum() / V[:, dst].abs().sum()
            V[:, src] *= .5
            V[:, dst] *= 1 + share
            new, s = quantize_4bit(D, blocksize=64, quant_type='nf4')
            q.copy_(new)
            naive_state.absmax.copy_(s.absmax)
        if i < 13: naive.append(timed(through_dense, device))
    best = ours or first
    return dict(median_ms=st.median(best), p90_ms=sorted(best)[int(.9 * len(best))], fastest_ms=min(best), median_while_base_bytes_are_copied_ms=st.median(first) if first else None, naive_ms=st.median(naive[3:]),
                ratio=st.median(naive[3:]) / st.median(best), extra_bytes_after_one=one, extra_bytes_after_all=w.extra_bytes, matrix_bytes=q.numel() + 4 * state.absmax.numel())


def storm(name, events, rho, device):
    "Random transfers between pathways of the first half of a matrix; with `rho` it relaxes after every fifth."
    import torch
    from plasticity_nb.errors import PlasticityError
    from plasticity_nb.weights import PathwayWeights
    kind, dim, width, double = KINDS[name]
    n_out, n_in = (256, 256) if dim else (512, 256)
    box = layer(kind, n_out, n_in, double, device)
    groups = torch.arange((n_out, n_in)[dim]).split(width)
    w = PathwayWeights(box, 'fc.weight', dim, groups)
    start, half = stored(w), w.n // 2
    own = torch.cat([torch.full((len(g),), i) for i, g in enumerate(groups)]).to(device)
    rng, worst, worst_matrix, done, refused, seconds = torch.Generator().manual_seed(1), 0., 0., 0, 0, 0.

    def look():
        nonlocal worst, worst_matrix
        have = torch.zeros(w.n, dtype=torch.float64, device=device).index_add_(0, own, exact(w.weight).abs().sum(1 - dim))
        want = w.magnitude * w.multipliers
        worst = max(worst, ((have - want).abs() / want.clamp(min=1e-300))[want > 0].max().item())
        assert (have[want == 0] == 0).all()
        worst_matrix = max(worst_matrix, abs(have.sum() / w.magnitude.sum() - 1).item())
    while done < events:
        order = torch.randperm(half, generator=rng)
        k = 1 + int(torch.randint(max(1, half // 16), (1,), generator=rng))
        share = torch.rand(k, generator=rng).clamp(min=.01).tolist()
        t = time.perf_counter()
        try:
            w.transfer(order[:k], order[k:k + max(1, half // 4)], share)
            done += 1
            if rho and done % 5 == 0: w.relax(rho)
        except PlasticityError: refused += 1
        seconds += time.perf_counter() - t
        if refused > events: break
        if done % max(1, events // 100) == 0: look()
    look()
    touched = w._slot >= 0
    outside = sum(int((a != b)[:, ~touched].sum()) if dim else int((a != b)[~touched].sum()) for a, b in zip(stored(w), start))
    changed = w.bytes_changed()
    w.rollback_all()
    identical = all(torch.equal(a, b) for a, b in zip(stored(w), start))
    return dict(events=done, refused=refused, relaxation=rho, worst_pathway=worst, worst_matrix=worst_matrix, untouched_lines=int((~touched).sum()), lines=len(touched), bytes_changed_outside=outside, bytes_changed=changed,
                rollback_identical=identical, ms_per_event=1e3 * seconds / max(1, done))


@call_parse
def main(size: int = 4096,  # rows and columns of the matrix that is timed
         events: int = 10000,  # collapses of each storm
         repeats: int = 300,  # timed collapses
         device: str = 'cpu',
         only: str = None,  # 'speed' or 'storms': the other half of the output file is kept
         output: str = 'benchmarks/transfers.json'):  # what is written
    "Time a collapse and measure what storms of them lose."
    import torch
    what = {'rows': (1, 0), 'heads of 128 (columns)': (128, 1)}
    result = json.loads(Path(output).read_text()) if only and Path(output).exists() else dict(speed={}, storms={})
    result |= dict(size=size, device=torch.cuda.get_device_name() if device != 'cpu' else f'{torch.get_num_threads()} threads, {platform.machine()}', torch=torch.__version__)
    print(f"{size} x {size} in NF4, {result['device']}\n\n| one collapse to 25 % of the pathways | ms (median) | 90th percentile | {CONTROL}, ms | ratio | memory added by one | by all |\n|---|---|---|---|---|---|---|")
    for k, (width, dim) in what.items() if only != 'storms' else ():
        r = result['speed'][k] = speed(width, dim, size, repeats, device)
        print(f"| {k} | {r['median_ms']:.3f} | {r['p90_ms']:.3f} | {r['naive_ms']:.0f} | {r['ratio']:.0f} | {r['extra_bytes_after_one']/2**20:.2f} MiB | {r['extra_bytes_after_all']/2**20:.2f} MiB |", flush=True)
    print('\n| storage | relaxation | events | refused | worst pathway | matrix | bytes outside of touched lines | rollback | ms an event |\n|---|---|---|---|---|---|---|---|---|')
    for k in KINDS if only != 'speed' else ():
        for rho in (0., .1):
            slow = 'float16' in k or not rho and k in ('NF4 heads of 32 (columns)', 'NF4 neurons (columns)')
            r = result['storms'][f'{k}, relaxation {rho}'] = storm(k, events // 10 if slow else events, rho, device)
            print(f"| {k} | {rho} | {r['events']} | {r['refused']} | {r['worst_pathway']:.1e} | {r['worst_matrix']:.1e} | {r['bytes_changed_outside']} | {'identical' if r['rollback_identical'] else 'DIFFERS'} | {r['ms_per_event']:.2f} |", flush=True)
    Path(output).write_text(json.dumps(result, indent=1) + '\n')
