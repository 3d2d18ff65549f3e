"""Install the git hooks for notebooks into this checkout: merges that understand notebooks, and commits that are exported and clean.

Touches nothing outside the checkout's .git folder, and no hook that somebody else wrote. Outside a git checkout it does nothing.
"""
import subprocess, sys
from pathlib import Path

root, mark = Path(__file__).resolve().parent.parent, '# notebook hook, written by tools/hooks.py'
bin = Path(sys.executable).parent

hooks = {
    'pre-commit': """
state() {{ git status --porcelain -- nbs plasticity_nb; git diff -- nbs plasticity_nb; }}
before=$(state)
[ -n "$before" ] || exit 0  # no notebook and no module has changed
"{bin}/nbdev_export" && "{bin}/python" tools/clean.py || exit 1
[ "$before" = "$(state)" ] && exit 0
echo "The notebooks have just been exported and cleaned: look at 'git diff', add what changed, and commit again." >&2
exit 1
""",
    'post-merge': """
exec "{bin}/nbdev_trust"
"""}

def git(*args): return subprocess.run(['git', '-C', root, *args], capture_output=True, text=True, check=True).stdout.strip()

def install():
    try: here = Path(git('rev-parse', '--show-toplevel')).resolve() == root
    except (OSError, subprocess.CalledProcessError): here = False
    if not here: return print('Not a git checkout of its own: no git hooks to install.')
    git('config', 'merge.nbdev-merge.name', 'resolve conflicts in notebooks')
    git('config', 'merge.nbdev-merge.driver', f'"{bin}/nbdev_merge" %O %A %B %P')
    folder = root/git('rev-parse', '--git-path', 'hooks')
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in hooks.items():
        f = folder/name
        if f.exists() and mark not in f.read_text(encoding='utf-8', errors='replace'):
            print(f'{name}: there is one already, it is left alone.')
            continue
        f.write_text(f'#!/bin/sh\n{mark}\n[ -x "{bin}/nbdev_export" ] || exit 0' + script.format(bin=bin), encoding='utf-8')
        f.chmod(0o755)
    print('The git hooks for notebooks are installed.')

if __name__ == '__main__': install()
