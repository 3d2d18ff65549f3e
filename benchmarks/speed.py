"""What watching costs: plain sdpa, gates, exact entropy, and eager with output_attentions, interleaved in one run.

    python benchmarks/speed.py                      # SmolLM2-135M, 1024 tokens
    python benchmarks/speed.py --model_name tiny --tokens 512 --repeats 20

Ratios are medians over rounds of (this variant's time / plain's time in the same round); rounds interleave the variants in an order that
changes. The control is plain sdpa a second time: its distance from 1 is what noise alone does. Peak memory is of a process of its own."""
import json, random, statistics as st, subprocess, sys, threading, time
from pathlib import Path

import psutil
from fastcore.script import call_parse

VARIANTS = 'plain control gates entropy entropy_every_4 eager'.split()
LABEL = dict(plain='plain sdpa', control='plain sdpa again (control)', gates='gates, no entropy', entropy='gates and entropy, every head and row',
             entropy_every_4='gates and entropy, every 4th row', eager='eager with output_attentions')


def prepare(model_name, tokens):
    import torch
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    lm = load_lm(model_name, device='cpu')
    return lm, token_blocks(load_text('python-docs').split('eval'), lm.tokenizer, block_len=tokens, max_blocks=1).ids


def forward(lm, ids, inst, variant):
    "Seconds of one forward pass."
    import torch
    kw = dict(use_cache=False, logits_to_keep=1)
    if variant == 'eager': lm.model.set_attn_implementation('eager'); kw['output_attentions'] = True
    undo = inst() if variant in ('gates', 'entropy', 'entropy_every_4') else None
    rec = undo.record(every=4 if variant == 'entropy_every_4' else 1) if variant.startswith('entropy') else None
    if rec: rec.__enter__()
    t = time.perf_counter()
    out = lm.model(ids, **kw)
    t = time.perf_counter() - t
    del out
    if rec: rec.__exit__(None, None, None)
    if undo: undo.remove()
    if variant == 'eager': lm.model.set_attn_implementation('sdpa')
    return t


def peak_added(f):
    "MB that the process grows by at most while f runs, looked at every millisecond."
    me, stop, seen = psutil.Process(), threading.Event(), [psutil.Process().memory_info().rss]
    def watch():
        while not stop.wait(.001): seen.append(me.memory_info().rss)
    thread = threading.Thread(target=watch); thread.start()
    f()
    stop.set(); thread.join()
    return (max(seen) - seen[0]) / 2**20


@call_parse
def main(model_name: str = 'smollm2-135m',  # as in plasticity_run
         tokens: int = 1024,  # in the one text
         repeats: int = 15,  # rounds; the first is not counted
         memory_of: str = None,  # used by the script itself: print the peak memory that one variant adds
         output: str = 'benchmarks/speed.json'):  # what is written
    "Time the variants and print their ratios to plain sdpa."
    import torch
    from plasticity_nb.attention import instrument
    lm, ids = prepare(model_name, tokens)
    lm.anatomy
    with torch.no_grad():
        if memory_of:
            forward(lm, ids[:, :32], lambda: instrument(lm), memory_of)
            return print(peak_added(lambda: forward(lm, ids, lambda: instrument(lm), memory_of)))
        times, rng = {v: [] for v in VARIANTS}, random.Random(0)
        for i in range(repeats + 1):
            for v in rng.sample(VARIANTS, len(VARIANTS)):
                t = forward(lm, ids, lambda: instrument(lm), v)
                if i: times[v].append(t)
    memory = {v: float(subprocess.run([sys.executable, __file__, '--model_name', model_name, '--tokens', str(tokens), '--memory_of', v], capture_output=True, text=True, check=True).stdout) for v in VARIANTS}
    def imports(m): return min(float(subprocess.run([sys.executable, '-c', f'import time; t=time.perf_counter(); import {m}; print(time.perf_counter()-t)'], capture_output=True, text=True, check=True).stdout) for _ in range(5))
    rows = {v: dict(seconds=st.median(times[v]), ratio=st.median(b / a for a, b in zip(times['plain'], times[v])), fastest=min(times[v]) / min(times['plain']), peak_mb=memory[v]) for v in VARIANTS}
    result = dict(model=model_name, tokens=tokens, repeats=repeats, threads=torch.get_num_threads(), torch=torch.__version__, import_seconds=imports('plasticity_nb'), import_torch_seconds=imports('torch'), rows=rows)
    Path(output).write_text(json.dumps(result, indent=1) + '\n')
    print(f'{model_name}, {tokens} tokens, {repeats} rounds, {torch.get_num_threads()} threads\n\n| | seconds | ratio to plain (median) | fastest to fastest | peak memory added |\n|---|---|---|---|---|')
    for v, r in rows.items(): print(f"| {LABEL[v]} | {r['seconds']:.3f} | {r['ratio']:.3f} | {r['fastest']:.3f} | {r['peak_mb']:.0f} MB |")
    print(f"\nimport plasticity_nb: {result['import_seconds']:.3f} s (torch alone: {result['import_torch_seconds']:.2f} s)")
