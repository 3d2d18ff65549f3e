"""Reads everything from settings.ini, the one place where nbdev keeps the package's facts."""
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
name, git = cfg['lib_name'], cfg['git_url']
readme = (here/'README.md').read_text(encoding='utf-8')
# GitHub follows the README's links into the repository; elsewhere, as on PyPI, they have to be whole
readme = re.sub(r'(!\[[^\]]*\])\((?![a-z]+:|#)', rf'\1({git}/raw/{cfg["branch"]}/', readme)
readme = re.sub(r'(\])\((?![a-z]+:|#)', rf'\1({git}/blob/{cfg["branch"]}/', readme)
setup(name=name, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'], license_expression='Apache-2.0',
      author=cfg['author'], author_email=cfg['author_email'], url=git, python_requires=f">={cfg['min_python']}",
      project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Changes': f"{git}/blob/{cfg['branch']}/CHANGELOG.md"},
      classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}", 'Framework :: Jupyter',
                   f"Programming Language :: Python :: {cfg['min_python']}", 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
      packages=find_packages(include=[name, f'{name}.*']), package_data={name: ['data/**/*']}, license_files=['LICENSE'],
      install_requires=cfg['requirements'].split(), extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'ray')},
      entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{name}={name}._modidx:d']},
      long_description=readme, long_description_content_type='text/markdown')
