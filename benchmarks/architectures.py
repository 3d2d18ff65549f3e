"""Every causal architecture of transformers at tiny random size: which of this package's claims hold for it, and why not.

    python benchmarks/architectures.py              all, a few minutes on one core; writes architectures.json beside this file
    python benchmarks/architectures.py llama bloom  only these, nothing is written

Each architecture runs in a process of its own with 6 GB and 60 seconds. An architecture holds when
  - its anatomy is found,
  - closing a head's gate is the same as zeroing its slice of the output projection (1e-5), for every head of every layer, and the next head's slice is not,
  - the instrument changes no bit of its logits at gate 1: plain, left-padded, token by token from a cache; with sdpa and with eager attention,
  - instrumented, with one gate half open, its causality and cache gaps are no larger than its own,
  - recorded entropies are those of eager attention weights, where the model gives them.
The gaps of the bare model are measured too, so that its own behaviour is not blamed on the instrument.
"""
import json, os, signal, sys, time, traceback, warnings
from pathlib import Path

import torch, transformers
from transformers.utils import logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plasticity_nb.anatomy import Anatomy, Trace
from plasticity_nb.attention import cache_gap, causality_gap, gate_against_slice, instrument
from plasticity_nb.errors import PlasticityError
from plasticity_nb.zoo import tiny_random

SECONDS, GIGABYTES = 60, 6
TOLERANCE = 1e-5
IDS = torch.arange(3, 23)[None]  # 20 tokens: more than a sliding window of 8


def sentence(e):
    "An exception as one line."
    return ' '.join((str(e) if isinstance(e, PlasticityError) else f'{type(e).__name__}: {e}').split())[:300]


def attempt(fn, *args, **kwargs):
    "A number, or the sentence that says why there is none."
    try: return fn(*args, **kwargs)
    except Exception as e: return sentence(e)


@torch.no_grad()
def runs(model):
    "Logits as they come out plain, left-padded and token by token from a cache; a sentence where the model cannot."
    def padded(): return model(input_ids=torch.cat([IDS.new_zeros(1, 3), IDS], 1), attention_mask=(torch.arange(IDS.shape[1]+3) >= 3).long()[None], use_cache=False).logits
    def cached():
        past, ys = None, []
        for t in IDS[0, :12]:
            o = model(input_ids=t[None, None], past_key_values=past, use_cache=True)
            past = o.past_key_values; ys.append(o.logits)
        return torch.cat(ys, 1)
    return [attempt(f) for f in (lambda: model(input_ids=IDS, use_cache=False).logits, padded, cached)]


def gaps(model):
    "Causality plain and left-padded, and cache gap."
    return dict(causality=attempt(causality_gap, model, IDS), padded=attempt(causality_gap, model, IDS, pad=3), cache=attempt(cache_gap, model, IDS))


@torch.no_grad()
def entropy_gap(model):
    "Largest difference in nats between recorded entropies and those of eager attention weights."
    with instrument(model) as inst, inst.record(per_token=True) as rec: model(input_ids=IDS, use_cache=False)
    model.set_attn_implementation('eager')
    weights = model(input_ids=IDS, use_cache=False, output_attentions=True).attentions
    weights = [w for w in weights or () if w is not None and w.dim() == 4]
    if len(weights) != len(rec.tokens): return 'eager attention gives no weights to compare with'
    return max((r[0]-torch.special.entr(w.double()).sum(-1)).abs().max().item() for r, w in zip(rec.tokens, weights))


def same_bits(bare, now):
    "Whether logits are equal, or there are none for the same reason; one answer for each of `runs`."
    return [a == b if isinstance(a, str) or isinstance(b, str) else torch.equal(a, b) for a, b in zip(bare, now)]


def examine(kind):
    "All measurements of one architecture."
    try: model = tiny_random(kind)
    except PlasticityError: raise
    except Exception as e: raise PlasticityError(f'{kind} cannot be built here at tiny size ({sentence(e)})') from e
    own, bare = gaps(model), runs(model)
    row = dict(model=type(model).__name__, interface=any(e['kind'] == 'attention' for e in Trace(model).run().events))
    try: found = Anatomy(model)
    except PlasticityError as e: return row | dict(refused=sentence(e))
    each = lambda values: '/'.join(str(v) for v in dict.fromkeys(values))
    row |= dict(layers=found.n_layers, heads=each(found.heads), kv_heads=each(found.kv_heads), interface=all(l.interface for l in found.layers),
                gate_at=each(l.gate_at for l in found.layers), mlps=sum(l.mlp is not None for l in found.layers))
    row['gate_minus_slice'], row['wrong_head'] = gate_against_slice(model, IDS)
    with instrument(model) as inst:
        row['same_bits'] = same_bits(bare, runs(model))
        inst.gates[0, 1 % found.heads[0]] = 0.5
        row['gaps'] = gaps(model)
    row['own_gaps'], row['untouched'] = own, all(same_bits(bare, runs(model)))
    row['entropy'] = attempt(entropy_gap, model)
    if model.config._attn_implementation == 'eager' and row['interface']:
        bare = runs(model)
        with instrument(model): row['same_bits_eager'] = same_bits(bare, runs(model))
    return row


def judge(row):
    "Sentences that say what does not hold; none when all does."
    if 'refused' in row: return [row['refused']]
    why = []
    if not row['gate_minus_slice'] <= TOLERANCE: why.append(f"gate and slice differ by {row['gate_minus_slice']:.1e}")
    if not row['wrong_head']: why.append(f"{row['model']} has heads that change no logit (they act on something else), so that nothing can be said about them")
    elif not row['wrong_head'] > 3*row['gate_minus_slice']: why.append(f"the wrong head's slice does as well ({row['wrong_head']:.1e})")
    for base in ('', '_eager'): why += [f'logits change at gate 1 ({how}{base.replace("_", ", ")})' for how, same in zip(('plain', 'left-padded', 'cached'), row.get('same_bits'+base, [])) if not same]
    if not row['untouched']: why.append('logits change after the instrument is taken off')
    for what, gap in row['gaps'].items():
        own = row['own_gaps'][what]
        if isinstance(own, str) != isinstance(gap, str) or not isinstance(gap, str) and not gap <= max(TOLERANCE, 2*own): why.append(f'{what} gap {gap}, bare {own}')
    if not isinstance(row['entropy'], str) and not row['entropy'] <= 5e-5: why.append(f"entropy differs from eager weights by {row['entropy']:.1e} nats")
    return why


def own_behaviour(row):
    "What the bare model itself does not do."
    if 'refused' in row: return []
    say = dict(causality='changing a later token changes earlier logits', padded='the same, left-padded', cache='reading from a cache gives other logits')
    return [f'{say[k]} ({g if isinstance(g, str) else f"{g:.0e}"})' for k, g in row['own_gaps'].items() if isinstance(g, str) or g > TOLERANCE]


def isolated(kind):
    "`examine` in a forked process with a limit on memory and time."
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r)
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30,)*2)
        signal.alarm(SECONDS)
        try: row = examine(kind)
        except Exception as e:
            if not isinstance(e, PlasticityError): traceback.print_exc()
            row = dict(refused=sentence(e))
        with os.fdopen(w, 'w') as f: json.dump(row, f)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: out = f.read()
    os.waitpid(pid, 0)
    return json.loads(out) if out else dict(refused=f'it needs more than {SECONDS} s or {GIGABYTES} GB')


def short(x):
    "Numbers with one digit, all the way down."
    if isinstance(x, dict): return {k: short(v) for k, v in x.items()}
    return float(f'{x:.0e}') if isinstance(x, float) else x


def number(x): return '-' if isinstance(x, str) else f'{x:.0e}' if x else '0'


def line(kind, row):
    if 'refused' in row: return f"{kind:24} refused: {row['refused']}"
    g = row['gaps']
    return (f"{kind:24} {row['layers']:2} {row['heads']:>5} {row['kv_heads']:>5} {'interface' if row['interface'] else 'own code':9} {row['gate_at']:10} {number(row['gate_minus_slice']):>6} "
            f"{number(row['wrong_head']):>6} {'yes' if all(row['same_bits']+row.get('same_bits_eager', [])) else 'NO':4} {number(g['causality']):>6} {number(g['padded']):>6} {number(g['cache']):>6} {number(row['entropy']):>6}  {'; '.join(row['fails']) or 'holds'}")


def main(kinds):
    torch.set_num_threads(1); torch.manual_seed(0)
    warnings.filterwarnings('ignore'); logging.set_verbosity_error(); logging.disable_progress_bar()
    every = not kinds
    kinds, rows, start = sorted(kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), {}, time.time()
    print(f"{'architecture':24} {'L':>2} {'heads':>5} {'kv':>5} {'attention':9} {'gate at':10} {'gate':>6} {'wrong':>6} {'bits':4} {'causal':>6} {'padded':>6} {'cache':>6} {'entr.':>6}")
    for kind in kinds:
        row = rows[kind] = isolated(kind)
        row['fails'] = judge(row); row['own'] = own_behaviour(row)
        print(line(kind, row), flush=True)
    hold = [k for k in kinds if not rows[k]['fails']]
    on = [k for k in kinds if rows[k].get('interface')]
    heard = [k for k in kinds if isinstance(rows[k].get('entropy'), float)]
    print(f"\n{len(hold)} of {len(kinds)} hold. {len(on)} call the attention interface; {sum(k in hold for k in on)} of these hold, and {len(heard)} give their entropy, compared with eager weights. {time.time()-start:.0f} s")
    print('\nDo not hold:')
    for k in kinds:
        for why in rows[k]['fails']: print(f'  {k}: {why}')
    print('\nHold, but their entropy was not compared:')
    for k in hold:
        if rows[k]['interface'] and k not in heard: print(f"  {k}: {rows[k]['entropy']}")
    print('\nWhat the bare model itself does:')
    for k in kinds:
        if rows[k]['own']: print(f"  {k}: {'; '.join(rows[k]['own'])}")
    if every:
        facts = dict(transformers=transformers.__version__, torch=torch.__version__.split('+')[0], of=len(kinds), hold=len(hold), interface=len(on), interface_hold=sum(k in hold for k in on), entropy=len(heard))
        lines = ',\n'.join(f'{json.dumps(k)}: {json.dumps(short(rows[k]))}' for k in kinds)
        Path(__file__).with_suffix('.json').write_text(f'{json.dumps(facts)[:-1]}, "architectures": {{\n{lines}}}}}\n')



if __name__ == '__main__': main(sys.argv[1:])
