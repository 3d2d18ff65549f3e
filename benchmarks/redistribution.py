"""Who takes over from pruned heads of tiny, and how often does the test call something a flow that is none?

    python benchmarks/redistribution.py     # about 3 minutes on one core
    python benchmarks/redistribution.py --table_only

30 % of the heads are closed, by Taylor importance and by lot, and the model learns for 60 steps of 8 x 64 tokens, beside its dense control on the same tokens
in the same order; three seeds. False calls: kept heads are called pruned although they are not, and dense models of two seeds are compared as if one of them
had been pruned. Writes benchmarks/redistribution.json."""
import json, random
from pathlib import Path

from fastcore.script import call_parse

LEVEL, STEPS, SEEDS, DRAWS = .3, 60, 3, 20


def table(study):
    "Lines of two Markdown tables."
    found = [f"| {n} | {s['perplexity']:.2f} | {study['dense']:.2f} | {s['pairs']} | {sum(s['frame']['flow'])} |" for n, s in study['pruned_by'].items()]
    false = [f"| {r['case']} | {r['seeds']} | {r['draws_with_a_flow']} of {r['draws']} | {r['flows']} of {r['pairs']:,} |" for r in study['false_calls']]
    return '\n'.join([study['about'], '', '| pruned by | perplexity | dense | pairs | flows |', '|---|---:|---:|---:|---:|', *found,
                      '', '| no flow to find | seeds | draws with one | pairs |', '|---|---:|---:|---:|', *false])


@call_parse
def main(table_only: bool = False,  # print what the file holds
         output: str = 'benchmarks/redistribution.json'):
    "Prune, learn, compare, and print the tables."
    if table_only: return print(table(json.loads(Path(output).read_text())))
    import torch
    from plasticity_nb.attention import instrument
    from plasticity_nb.cycle.finetune import learn
    from plasticity_nb.cycle.prune import choose
    from plasticity_nb.experiment.redistribution import output_similarity, profile, redistribution
    from plasticity_nb.metrics import evaluate
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    torch.set_num_threads(1)
    lm, corpus = load_lm('tiny', device='cpu'), load_text('python-docs')
    blocks = lambda half, length, n: token_blocks(corpus.split(half), lm.tokenizer, length, n)
    texts, lessons, calibration, held = blocks('eval', 64, 8), blocks('train', 64, 480), blocks('train', 128, 16), blocks('eval', 128, 32)
    inst = instrument(lm)
    before = profile(inst, texts)

    def trained(pruned, seed):
        "Prune, learn; profile right after pruning and after learning, and the perplexity."
        with instrument(load_lm('tiny', device='cpu')) as i:
            for h in pruned: i.gates.data[h] = 0
            at_once = profile(i, texts)
            learn(i, lessons, STEPS, lr=3e-4, batch_size=8, seed=seed)
            return at_once, profile(i, texts), evaluate(i.lm, held).perplexity

    def false_calls(case, after, control, cut, rng):
        kept, hits = [h for h in map(tuple, before['heads'].tolist()) if h not in cut], []
        for _ in range(DRAWS):
            decoys = rng.sample(kept, 5)
            hits.append(int(redistribution(before, after, control, decoys, [h for h in kept if h not in decoys]).flow.sum()))
        return dict(case=case, seeds=len(after), draws=DRAWS, draws_with_a_flow=sum(h > 0 for h in hits), flows=sum(hits), pairs=DRAWS*5*(len(kept)-5))

    dense = [trained([], s) for s in range(SEEDS + 2)]
    controls, more = [d[1] for d in dense[:SEEDS]], [d[1] for d in dense[SEEDS:]]
    row = {tuple(h): i for i, h in enumerate(before['heads'].tolist())}
    study, false = {}, []
    for name in ('taylor', 'random'):
        cut = choose(inst, name, LEVEL, calibration, seed=7)
        runs = [trained(cut, s) for s in range(SEEDS)]
        frame = redistribution(before, [r[1] for r in runs], controls, cut)
        gain = output_similarity(before['outputs'], runs[0][0]['outputs'])-output_similarity(before['outputs'], before['outputs'])
        frame['at_once'] = [gain[row[r.pruned_layer, r.pruned_head], row[r.layer, r.head]].item() for r in frame.itertuples()]
        study[name] = dict(perplexity=sum(r[2] for r in runs)/SEEDS, pairs=len(frame), attrs=dict(frame.attrs), frame={k: v for k, v in frame.round(4).to_dict('list').items() if not k.endswith('_score')})
        for n in (1, SEEDS): false.append(false_calls(f'decoys, {name}', [r[1] for r in runs[:n]], controls[:n], cut, random.Random(0)))
        flows = [int(redistribution(before, controls[i], controls[j], cut).flow.sum()) for i, j in ((0, 1), (1, 2), (2, 0))]
        two = redistribution(before, more, controls[:2], cut)
        false += [dict(case=f'dense against dense, heads of {name}', seeds=1, draws=3, draws_with_a_flow=sum(x > 0 for x in flows), flows=sum(flows), pairs=3*len(frame)),
                  dict(case=f'dense against dense, heads of {name}', seeds=2, draws=1, draws_with_a_flow=int(two.flow.any()), flows=int(two.flow.sum()), pairs=len(two))]
    result = dict(about=f'tiny on python-docs, {LEVEL:.0%} of 48 heads closed, {STEPS} steps, {SEEDS} seeds', dense=sum(d[2] for d in dense[:SEEDS])/SEEDS, pruned_by=study, false_calls=false)
    Path(output).write_text(json.dumps(result) + '\n')
    print(table(result))
