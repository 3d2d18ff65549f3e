"""What the stress monitor costs: one drawing for 30 x 9 heads and 1,000 buckets of neurons, and a text inside the monitor beside the same text without it.

    python benchmarks/widgets.py

Writes widgets.json. Everything runs in a real Jupyter kernel, so that what is sent to the browser is packed and sent. Texts are written in rounds, and times are ratios within a round; `again` is the plain text once more, the noise.
"""
import argparse, json, os, platform, statistics as st, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPTS = ['The sea was calm that morning, and the old man', 'A list is a sequence of', 'In the beginning of the nineteenth century,']

def draw_cost(n=60):
    "Milliseconds of a drawing when every head and every neuron is under stress, a token after the other, and bytes of text in it."
    import torch
    from plasticity_nb.models import as_lm, load_lm
    from plasticity_nb.rcg.engine import RCGConfig
    from plasticity_nb.widgets.stress_monitor import StressMonitor
    from plasticity_nb.zoo import tiny_random
    tokenizer = load_lm('tiny', device='cpu').tokenizer
    model = tiny_random('llama', max_params=50_000_000, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=144, intermediate_size=1536, vocab_size=len(tokenizer), max_position_embeddings=1024)
    model.generation_config.eos_token_id = None
    m = StressMonitor(as_lm(model, tokenizer, 'random weights'), RCGConfig(neuron_share=.02, guard_every=0), tokens=400+n)
    m._begin(['on'])
    for _ in range(400): m.text.write()     # the traces are as long as they get
    m._draw()
    times,sizes,moved = [],[],0
    for _ in range(n):
        m.text.write()
        f,had = m.text.g.field,m.columns[0]['speech'].at+len(m.columns[0]['speech'].parts)
        f.heads.uniform_(); f.index,f.value = torch.arange(f.n_neurons),torch.rand(f.n_neurons)
        t = time.perf_counter(); m._draw(); times.append(1000*(time.perf_counter()-t))
        s = m.columns[0]['speech']
        sizes.append(len(json.dumps(s.parts[had-s.at:])))
    out = dict(layers=30, heads=9, buckets=int((~m.buckets.none).sum()), tokens_in_traces=len(m.text.trace), events=len(m.text.events), drawings=n,
               ms=round(st.median(times), 1), ms_95=round(sorted(times)[int(.95*n)], 1), bytes_of_text=round(st.median(sizes)))
    m.close()
    return out

def texts(name, n, rounds):
    "A text by the engine alone and the same inside the monitor, in turn."
    import torch
    from plasticity_nb.models import load_lm
    from plasticity_nb.rcg.engine import RCG
    from plasticity_nb.widgets.stress_monitor import StressMonitor
    torch.set_grad_enabled(False)
    lm = load_lm(name, device='cpu')
    m = StressMonitor(lm, tokens=n, stop=False)
    def plain(p): return RCG(lm, m.config).generate(p, n, stop=False).finish().tokens
    def inside(p): m.set(prompt=p); m.run(); m.wait(); return m.generation.tokens
    ways = dict(plain=plain, again=plain, monitor=inside)
    times,drawn = {k:[] for k in ways},[]
    for r in range(-1, rounds):             # the first is to warm up, and to see that the tokens are the same
        for p in PROMPTS:
            order = list(ways.items()); order = order[r%3:]+order[:r%3]
            said = []
            for k,f in order:
                b,l,d = m.budget.spent,m.looks.spent,m.budget.drawn
                t = time.perf_counter(); said.append(f(p)); t = time.perf_counter()-t
                if r>=0: times[k].append(t)
                if r>=0 and k=='monitor': drawn.append((m.budget.drawn-d, (m.budget.spent-b)/t, (m.looks.spent-l)/t))
            assert all(torch.equal(x, said[0]) for x in said)
    m.close()
    ratio = lambda k: [a/b for a,b in zip(times[k], times['plain'])]
    return dict(model=name, tokens=n, rounds=rounds, prompts=PROMPTS, threads=torch.get_num_threads(), cpu=platform.machine(), torch=torch.__version__, drawings=round(st.mean(d[0] for d in drawn), 1),
                share_drawing=round(st.mean(d[1] for d in drawn), 4), share_reading_weights=round(st.mean(d[2] for d in drawn), 4),
                ways={k:dict(ms_per_token=round(1000*st.median(v)/n, 2), ratio=round(st.median(ratio(k)), 3), ratios=[round(x, 3) for x in ratio(k)]) for k,v in times.items()})

def in_kernel(call):
    "What a function of this file gives when it is called in a Jupyter kernel."
    from jupyter_client.manager import start_new_kernel
    manager,client = start_new_kernel(kernel_name='python3', env=os.environ|dict(PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get('PYTHONPATH', '')])))
    said = []
    def hear(msg):
        if msg['msg_type']=='stream' and msg['content']['name']=='stdout': said.append(msg['content']['text'])
    try:
        reply = client.execute_interactive(f'import json, widgets; print("RESULT"+json.dumps(widgets.{call}))', output_hook=hear, timeout=None)
        if reply['content']['status']!='ok': sys.exit('\n'.join(reply['content']['traceback']))
    finally: client.stop_channels(); manager.shutdown_kernel(now=True)
    return json.loads(''.join(said).split('RESULT')[1])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='smollm2-135m')
    p.add_argument('--n_tokens', type=int, default=48)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--only', choices=('drawing','texts'), help='leave the other as it is in the file')
    p.add_argument('--output', default=HERE/'widgets.json')
    a = p.parse_args()
    out = json.loads(Path(a.output).read_text()) if Path(a.output).exists() else {}
    if a.only!='texts': out['drawing'] = in_kernel('draw_cost()')
    if a.only!='drawing': out['texts'] = in_kernel(f'texts({a.model!r}, {a.n_tokens}, {a.rounds})')
    Path(a.output).write_text(json.dumps(out, indent=1)+'\n')
    if 'drawing' in out: print(f"a drawing: {out['drawing']['ms']} ms (95 % below {out['drawing']['ms_95']}) for 30 x 9 heads and {out['drawing']['buckets']} buckets")
    for k,v in out.get('texts', {}).get('ways', {}).items(): print(f"{k:>8}: {v['ms_per_token']:.1f} ms a token, {v['ratio']:.3f} times the plain text")

if __name__=='__main__': main()
