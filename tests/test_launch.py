"Fine-tuning in several processes, started by accelerate launch, on the CPU."
import json, os, socket, subprocess, sys
import pytest

SCRIPT = '''
import json, sys, torch
from accelerate import PartialState
from plasticity_nb.attention import instrument
from plasticity_nb.cycle.finetune import learn
from plasticity_nb.zoo import tiny_random
from plasticity_nb.models import LM

state, out = PartialState(cpu=True), sys.argv[1]
inst = instrument(LM(tiny_random('llama')))
for h in [(0,1),(1,2)]: inst.gates.data[h] = 0
ids = torch.randint(0, 120, (40,16), generator=torch.Generator().manual_seed(0))
before, runs = sorted(vars(inst.lm.model)), []
plain, soon, lora = dict(grown=[(0,1)], gates=[(1,2),(1,1)]), dict(patience=2, eval_every=1, lr=3e-2), dict(lora=2, batch_size=4//state.num_processes, accumulate=2)
for options in (plain, soon, lora): # the second overfits at once
    r = learn(inst, ids[:32], **(dict(steps=6, lr=1e-2, batch_size=8//state.num_processes, held=ids[32:]) | options))
    runs.append(dict(losses=r.losses, held=[n for _, n in r.held], best=r.best_step, tokens=r.tokens, gates=inst.gates.flatten().tolist(), weights=[p.double().sum().item() for p in inst.lm.model.parameters()]))
assert sorted(vars(inst.lm.model)) == before and not inst.gates.requires_grad
state = PartialState(cpu=True)
json.dump(dict(runs=runs, processes=state.num_processes), open(f'{out}/{state.process_index}.json', 'w'))
'''

def train(folder, processes):
    "Train in so many processes; what each of them says."
    folder.mkdir(); (folder/'script.py').write_text(SCRIPT)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    launch = f'-m accelerate.commands.launch --multi_gpu --num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}'.split()
    env = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES='')
    p = subprocess.run([sys.executable, *(launch if processes > 1 else []), folder/'script.py', folder], capture_output=True, text=True, env=env, timeout=600)
    assert p.returncode == 0, p.stderr[-3000:]
    said = [json.loads((folder/f'{i}.json').read_text()) for i in range(processes)]
    assert all(s['processes'] == processes for s in said)
    return [s['runs'] for s in said]

def test_two_processes(tmp_path):
    "Two processes with half the batch each are one process, to rounding, and agree with each other to the bit: plain, stopped early, with LoRA and two batches a step."
    one, = train(tmp_path/'one', 1)
    two, other = train(tmp_path/'two', 2)
    assert two == other
    for a, b in zip(one, two):
        assert a['tokens'] == b['tokens'] and a['best'] == b['best']
        for k in ('losses', 'held', 'gates', 'weights'): assert a[k] == pytest.approx(b[k], rel=2e-3, abs=2e-3), k
    assert one[0]['losses'] == pytest.approx(two[0]['losses'], rel=1e-5)
    assert len(one[1]['losses']) < 6  # stopped early, together
