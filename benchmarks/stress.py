"""Does taking turns forget, does a pair that contradicts itself interfere more than two unrelated tasks, does damage recover, is targeted damage worse than random?

    python benchmarks/stress.py

Runs the stress protocols on tiny (about ten minutes on one core) and keeps what every seed did in benchmarks/stress.json.
What stands there is not done again: delete it, or name it with --only, to do it anew."""
import json, sys, tempfile
from pathlib import Path

KEPT = Path(__file__).with_suffix('.json')
LEARN = dict(cycles=2, recovery_steps=25, recovery_batch_size=8, recovery_learning_rate=1e-3, looks=5, held_rows=32)
READ = dict(LEARN, recovery_steps=15, recovery_batch_size=4, recovery_learning_rate=3e-4, block_len=32, held_rows=16)
STUDY = dict(
    contradicting=dict(LEARN, protocol_type='task_alternation', tasks=('labels', 'labels_flipped'), seeds=(0, 1, 2, 3, 4)),
    targeted=dict(READ, protocol_type='targeted_damage', tasks=('prose', 'drama'), damage_ratio=.2),
    unrelated=dict(LEARN, protocol_type='task_alternation', tasks=('arithmetic', 'copying')),
    conflict=dict(READ, protocol_type='conflict_pruning', tasks=('prose', 'drama'), conflict_ratio=.2))


def short(o):
    "The same with six significant digits."
    if isinstance(o, float): return float(f'{o:.6g}')
    return {k: short(v) for k, v in o.items()} if isinstance(o, dict) else [short(v) for v in o] if isinstance(o, list) else o


def study():
    "What is kept: a report of each protocol, by its name."
    from plasticity_nb.tracking.stress_protocols import StressReport
    return {k: StressReport(v) for k, v in json.loads(KEPT.read_text(encoding='utf-8')).items()}


def main(only):
    from plasticity_nb.models import load_lm
    from plasticity_nb.runs import to_json, write_whole
    from plasticity_nb.tracking.stress_protocols import StressProtocolConfig, run_plasticity_stress_loop
    lm = load_lm('tiny', device='cpu')
    for name, plan in STUDY.items():
        kept = lambda: json.loads(KEPT.read_text(encoding='utf-8')) if KEPT.exists() else {}
        if name not in only and (only or name in kept()): continue
        report = run_plasticity_stress_loop(lm, config=StressProtocolConfig(output_dir=tempfile.mkdtemp(), **plan))
        report = {k: v for k, v in report.items() if k not in ('findings', 'rows')}
        write_whole(KEPT, to_json(dict(kept(), **{name: short(report)}), compact=True) + '\n')
        print(name, StressReport(report), sep='\n\n', end='\n\n', flush=True)


if __name__ == '__main__':
    from plasticity_nb.tracking.stress_protocols import StressReport
    main(sys.argv[2:] if sys.argv[1:2] == ['--only'] else [])
