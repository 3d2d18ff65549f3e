"""Which ridge does a refit need? Perplexity of SmolLM2-135M after a refit with several ridges, few and many calibration tokens, good and bad choices of heads.

    python benchmarks/ridge.py --device cuda     # about 1.5 minutes on an H200
    python benchmarks/ridge.py --table_only

Writes benchmarks/ridge.json: for every choice, level and number of tokens the perplexity over the dense model's, a number for each ridge; null is the
default, which is chosen for every projection on held-out tokens."""
import json
from pathlib import Path

from fastcore.script import call_parse

RIDGES = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, None


def table(study):
    "Lines of a Markdown table."
    out = [study['about'], '', '| heads chosen by | closed | tokens | ' + ' | '.join('held out' if r is None else f'{r:g}' for r in study['ridges']) + ' |', '|---|' + '---:|' * (2 + len(study['ridges']))]
    short = lambda x: f'{x:.3f}' if x < 100 else f'{x:,.0f}'
    return '\n'.join(out + [f"| {r['strategy']} | {r['level']:.0%} | {r['tokens']:,} | " + ' | '.join(map(short, r['ratios'])) + ' |' for r in study['rows']])


@call_parse
def main(strategies: str = 'irreplaceable,irreplaceable_iterative,taylor,output_norm,random',  # with commas between
         device: str = 'cpu',  # or 'cuda'
         table_only: bool = False,  # print what the file holds
         output: str = 'benchmarks/ridge.json'):
    "Refit with every ridge and print the table."
    if table_only: return print(table(json.loads(Path(output).read_text())))
    import torch
    from plasticity_nb.attention import instrument
    from plasticity_nb.cycle.prune import choose
    from plasticity_nb.cycle.refit import refit
    from plasticity_nb.metrics import evaluate
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    lm, text = load_lm('smollm2-135m', dtype='float32', device=device), load_text('python-docs')
    train, held = (token_blocks(text.split(half), lm, 256, n) for half, n in (('train', 32), ('eval', 16)))
    spread = lambda n: train.ids[torch.arange(n) * len(train) // n]
    inst = instrument(lm)
    dense = evaluate(lm, held).perplexity
    study = dict(about=f'{lm.name}, perplexity over the dense model\'s {dense:.2f}; held out: {held!r}; calibration from {train!r}', ridges=RIDGES, rows=[])
    for name in strategies.split(','):
        inst.gates.data.fill_(1)
        order = choose(inst, name, .5, spread(8), seed=0)
        for level in (.3, .5):
            inst.gates.data.fill_(1)
            for l, h in order[:round(level * 270)]: inst.gates.data[l, h] = 0
            for n in (1, 4, 32):
                ratios = []
                for ridge in RIDGES:
                    repairs = refit(inst, spread(n), ridge)
                    ratios.append(evaluate(lm, held).perplexity / dense)
                    repairs.restore()
                study['rows'].append(dict(strategy=name, level=level, tokens=n * 256, ratios=ratios))
                Path(output).write_text(json.dumps(study, indent=1) + '\n')
    print(table(study))
