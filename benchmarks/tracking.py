"""What recording costs: entropy journal and tracker every 10 steps of a training loop, and how fast the journal is written.

    python benchmarks/tracking.py                            # tiny and SmolLM2-135M, about 3 minutes on 2 cores
    python benchmarks/tracking.py --model_names tiny --steps 101

The loop is `learn` with its defaults (batches of 4 texts of 128 tokens); journal and tracker each look at 2 texts of 64 tokens, in `on_step`.
Recorded steps stand among the others in one run, so the machine's moods hit both alike: the share is the time of the looks over the time of
the steps between them. The control is a recorder that does nothing, called at the same steps, and the step that follows a look beside the others:
a look that spoils caches or allocators for the training would show there."""
import json, platform, statistics as st, tempfile, time
from pathlib import Path

from fastcore.script import call_parse


def prepare(name):
    "Model with its instrument, training texts, watched texts."
    from plasticity_nb.attention import instrument
    from plasticity_nb.models import load_lm
    from plasticity_nb.text import load_text, token_blocks
    lm, text = load_lm(name, device='cpu'), load_text('python-docs')
    return instrument(lm), token_blocks(text.split('train'), lm.tokenizer, 128, 200), token_blocks(text.split('eval'), lm.tokenizer, 64, 2)


def in_training(name, steps, every, folder):
    "Seconds of every step and of every look in one run of `learn`."
    import torch
    from plasticity_nb.cycle.finetune import learn
    from plasticity_nb.tracking.entropy_journal import EntropyJournal
    from plasticity_nb.tracking.tracker import PlasticityTracker
    torch.manual_seed(0)
    inst, train, texts = prepare(name)
    journal, tracker = EntropyJournal(output_dir=folder, experiment_name=name), PlasticityTracker(inst, texts)
    tracker.initialize_tracking(); journal.record_model_state(inst, texts, -1)
    clock, of_step, of_journal, of_tracker, of_nothing = [time.perf_counter()], [], {}, {}, []
    def on_step(i, loss):
        of_step.append(time.perf_counter() - clock[0])
        t = time.perf_counter(); of_nothing.append(time.perf_counter() - t)
        if i % every == every - 1:
            t = time.perf_counter(); journal.record_model_state(inst, texts, i, loss=loss.item()); of_journal[i] = time.perf_counter() - t
            t = time.perf_counter(); tracker.track_step(i, loss=loss.item()); of_tracker[i] = time.perf_counter() - t
        clock[0] = time.perf_counter()
    learn(inst, train, steps, lr=1e-5, on_step=on_step)
    inst.remove()
    usual = [s for i, s in enumerate(of_step) if i and i - 1 not in of_journal] # the first step makes the optimizer's state
    after = [of_step[i + 1] for i in of_journal if i + 1 < len(of_step)]
    step, j, t = st.median(usual), st.median(of_journal.values()), st.median(of_tracker.values())
    return dict(heads=sum(inst.anatomy.heads), steps=steps, every=every, looks=len(of_journal), step_seconds=step, journal_seconds=j, tracker_seconds=t, journal_share=j / (every * step), tracker_share=t / (every * step),
                share=(j + t) / (every * step), share_of_sums=(sum(of_journal.values()) + sum(of_tracker.values())) / (st.mean(usual) * every * len(of_journal)), control_share=sum(of_nothing) / sum(of_step), step_after_a_look=st.median(after) / step)


def writing(folder, seconds=3., layers=30, heads=9):
    "Head rows written in a second: made-up looks at 270 heads, appended one by one as the journal appends them; and read back into a table."
    import random
    from plasticity_nb.runs import append_line
    from plasticity_nb.tracking.entropy_journal import HEAD_MEASURES, journal_frame, read_entropy_journal
    rng, path, n = random.Random(0), Path(folder)/'speed.jsonl', layers * heads
    line = dict(schema=1, time=0., experiment='speed', model='made-up', name='', sequences=2, tokens=128, digest='0' * 12, layer=[i // heads for i in range(n)], head=[i % heads for i in range(n)],
                **{k: [float(f'{rng.random():.6g}') for _ in range(n)] for k in HEAD_MEASURES}, fields=dict(loss=1.5), head_fields={})
    rates, done = [], 0
    for _ in range(5):
        t, k = time.perf_counter(), 0
        while time.perf_counter() - t < seconds / 5: append_line(path, line | dict(cycle=done)); k += 1; done += 1
        rates.append(k * n / (time.perf_counter() - t))
    t = time.perf_counter(); frame = journal_frame(read_entropy_journal(path)); t = time.perf_counter() - t
    return dict(rows=done * n, rows_per_second=st.median(rates), slowest=min(rates), bytes_per_row=path.stat().st_size / (done * n), read_rows_per_second=len(frame) / t)


@call_parse
def main(model_names: str = 'tiny,smollm2-135m',  # as in plasticity_run
         steps: str = '101,21',  # of each
         every: int = 10,  # steps between two looks
         output: str = 'benchmarks/tracking.json'):  # what is written
    "Measure and print."
    import torch
    with tempfile.TemporaryDirectory() as folder:
        result = dict(threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(), journal=writing(folder), training={})
        for n, s in zip(model_names.split(','), steps.split(',')):
            result['training'][n] = in_training(n, int(s), every, folder)
            Path(output).write_text(json.dumps(result, indent=1) + '\n')
    j = result['journal']
    print(f"journal: {j['rows_per_second']:,.0f} head rows a second written (slowest of 5: {j['slowest']:,.0f}), {j['bytes_per_row']:.0f} bytes a row, {j['read_rows_per_second']:,.0f} a second read back\n")
    print(f'batches of 4 x 128 tokens, looks at 2 x 64 tokens every {every} steps, {result["threads"]} threads\n\n| model | step, s | journal, s | tracker, s | both, share of the time | control | step after a look |\n|---|---|---|---|---|---|---|')
    for n, r in result['training'].items(): print(f"| {n} | {r['step_seconds']:.3f} | {r['journal_seconds']:.3f} | {r['tracker_seconds']:.3f} | {100 * r['share']:.1f} % | {100 * r['control_share']:.4f} % | {r['step_after_a_look']:.3f} |")
